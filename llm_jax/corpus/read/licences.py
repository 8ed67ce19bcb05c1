"""Licences by their SPDX names, from licence files, file headers and package metadata."""

from collections.abc import Mapping
import re

_FILE = re.compile(r'(?i)(un)?licen[cs]e([-_.].*)?|copying([-_.].*)?|mit-licen[cs]e.*')
_CODE = re.compile(r'(?i)\.(py|js|ts|go|rs|c|h|cc|cpp|java|rb|php|cs|html?|json|ya?ml|xml)$')
_PLAIN_FILE = re.compile(r'(?i)(un)?licen[cs]e(\.(txt|md|rst))?|copying(\.txt)?')
_TAG = re.compile(r'SPDX-License-Identifier:\s*([\w.+-]+(?:\s+(?:AND|OR|WITH)\s+[\w.+-]+)*)')
# What only this licence says; of two that begin at the same place, the first is meant.
_TEXTS = [
    (spdx, re.compile(pattern, re.I))
    for spdx, pattern in (
        ('Apache-2.0', r'apache license,? (\(?the .license.\)? )?version 2\.0'),
        ('AGPL-3.0', r'gnu affero general public license.{0,40}version 3'),
        ('LGPL-3.0', r'gnu lesser general public license.{0,40}version 3'),
        ('LGPL-2.1', r'gnu lesser general public license.{0,40}version 2\.1'),
        ('GPL-3.0', r'gnu general public license.{0,40}version 3'),
        ('GPL-2.0', r'gnu general public license.{0,40}version 2'),
        ('MPL-2.0', r'mozilla public license,? (version )?2\.0'),
        ('EPL-2.0', r'eclipse public license - v ?2\.0'),
        ('PSF-2.0', r'python software foundation license version 2'),
        ('BSL-1.0', r'boost software license - version 1\.0'),
        ('Artistic-2.0', r'the artistic license 2\.0'),
        ('CC0-1.0', r'cc0 1\.0 universal|creative commons legal code cc0'),
        ('CC-BY-SA-4.0', r'attribution-sharealike 4\.0 international'),
        ('CC-BY-NC-4.0', r'attribution-noncommercial 4\.0 international'),
        ('CC-BY-4.0', r'(creative commons )?attribution 4\.0 international'),
        ('Unlicense', r'this is free and unencumbered software released into the public domain'),
        ('WTFPL', r'do what the fuck you want to'),
        ('Zlib', r'this software is provided .as-is., without any express or implied warranty'),
        ('0BSD', r'to use, copy, modify, and/or distribute this software for any purpose with or without fee is hereby '
         r'granted\. the software is provided'),
        ('ISC', r'permission to use, copy, modify,? (and/or|and) distribute this software for any purpose with or '
         r'without fee is hereby granted, provided'),
        ('MIT-0', r'mit no attribution'),
        ('MIT', r'permission is hereby granted, free of charge, to any person obtaining a copy|^(the )?mit license'),
        ('BSD-3-Clause', r'redistribution and use in source and binary forms.*'
         r'(neither the name|names? of .{0,200} may not be used to endorse)'),
        ('BSD-2-Clause', r'redistribution and use in source and binary forms'),
    )
]  # fmt: skip
# The parts of "License :: OSI Approved :: ..." classifiers.
_CLASSIFIERS = {
    'MIT License': 'MIT',
    'MIT No Attribution License (MIT-0)': 'MIT-0',
    'Apache Software License': 'Apache-2.0',
    'BSD License': 'BSD-3-Clause',
    'ISC License (ISCL)': 'ISC',
    'Python Software Foundation License': 'PSF-2.0',
    'Mozilla Public License 2.0 (MPL 2.0)': 'MPL-2.0',
    'GNU General Public License v2 (GPLv2)': 'GPL-2.0',
    'GNU General Public License v2 or later (GPLv2+)': 'GPL-2.0-or-later',
    'GNU General Public License v3 (GPLv3)': 'GPL-3.0',
    'GNU General Public License v3 or later (GPLv3+)': 'GPL-3.0-or-later',
    'GNU Lesser General Public License v2 or later (LGPLv2+)': 'LGPL-2.1-or-later',
    'GNU Lesser General Public License v3 (LGPLv3)': 'LGPL-3.0',
    'GNU Lesser General Public License v3 or later (LGPLv3+)': 'LGPL-3.0-or-later',
    'GNU Affero General Public License v3': 'AGPL-3.0',
    'The Unlicense (Unlicense)': 'Unlicense',
    'CC0 1.0 Universal (CC0 1.0) Public Domain Dedication': 'CC0-1.0',
    'zlib/libpng License': 'Zlib',
    'Historical Permission Notice and Disclaimer (HPND)': 'HPND',
}
_SHORT = {
    'mit': 'MIT', 'mit license': 'MIT', 'the mit license': 'MIT', 'apache': 'Apache-2.0', 'apache 2': 'Apache-2.0',
    'apache 2.0': 'Apache-2.0', 'apache-2': 'Apache-2.0', 'apache license 2.0': 'Apache-2.0',
    'apache license, version 2.0': 'Apache-2.0', 'apache software license': 'Apache-2.0', 'bsd': 'BSD-3-Clause',
    'bsd license': 'BSD-3-Clause', 'new bsd': 'BSD-3-Clause', 'new bsd license': 'BSD-3-Clause',
    'bsd 3-clause': 'BSD-3-Clause', '3-clause bsd license': 'BSD-3-Clause', 'modified bsd license': 'BSD-3-Clause',
    'bsd-3': 'BSD-3-Clause', 'bsd 2-clause': 'BSD-2-Clause', 'isc': 'ISC', 'psf': 'PSF-2.0', 'psfl': 'PSF-2.0',
    'mpl 2.0': 'MPL-2.0', 'gplv2': 'GPL-2.0', 'gplv3': 'GPL-3.0', 'lgpl': 'LGPL', 'lgplv3': 'LGPL-3.0',
}  # fmt: skip


def is_licence_file(name: str) -> bool:
    """Whether a file of this name (no directory) states the licence of its directory."""
    return _FILE.fullmatch(name) is not None and not _CODE.search(name)


def recognise(text: str) -> str:
    """SPDX name of the licence that a licence file gives first; '' if it is none of the usual ones."""
    plain = re.sub(r'\s+', ' ', re.sub(r'^[\s#*/;-]+', ' ', text[:20_000], flags=re.M)).strip()
    found = [(match.start(), i) for i, (_, pattern) in enumerate(_TEXTS) if (match := pattern.search(plain))]
    return _TEXTS[min(found)[1]][0] if found else ''


def tag(text: str) -> str:
    """What the SPDX tag in the head of a file says; '' if there is none."""
    match = _TAG.search(text, 0, 2000)
    return match[1] if match else ''


def of_directories(stated: Mapping[str, str]) -> dict[str, str]:
    """Licence of each directory that has licence files.

    Args:
      stated: path of a licence file -> SPDX name. Where LICENSE stands beside LICENSE.zlib it alone
        counts; LICENSE-MIT beside LICENSE-APACHE gives a choice.
    """
    found: dict[str, dict[str, str]] = {}
    for path, spdx in stated.items():
        directory, _, name = path.rpartition('/')
        found.setdefault(directory, {})[name] = spdx
    out = {}
    for directory, names in found.items():
        plain = {spdx for name, spdx in names.items() if _PLAIN_FILE.fullmatch(name)}
        out[directory] = ' OR '.join(sorted((plain or set(names.values())) - {''}))
    return out


def of_card(text: str) -> str:
    """Licence in the header of a data set's card (README.md of a Hugging Face data set); '' if it states none."""
    header = re.match(r'---\s*\n(.*?)\n---', text, re.S)
    match = re.search(r'^license:\s*(?:-\s*)?["\']?([\w.+-]+)', header[1], re.M) if header else None
    stated = match[1] if match else ''
    known = {spdx.lower(): spdx for spdx, _ in _TEXTS}
    return known.get(stated.lower(), stated)


def nearest(path: str, licences: Mapping[str, str]) -> str:
    """Licence of the closest directory above a path that has one; '' if none has.

    Args:
      licences: directory ('' is the root) -> licence.
    """
    while path:
        path = path.rpartition('/')[0]
        if path in licences:
            return licences[path]
    return ''


def of_metadata(metadata: Mapping) -> str:
    """Licence by the metadata of a Python distribution: its expression, else field, else classifiers.

    Args:
      metadata: of `importlib.metadata`.
    """
    if expression := metadata.get('License-Expression'):
        return expression
    stated = (metadata.get('License') or '').strip()
    if found := _SHORT.get(stated.lower()):
        return found
    if len(stated) > 200 and (found := recognise(stated)):  # some paste the whole text
        return found
    classifiers = metadata.get_all('Classifier') or []
    last = [c.split(' :: ')[-1] for c in classifiers if c.startswith('License ::')]
    known = sorted({_CLASSIFIERS[c] for c in last if c in _CLASSIFIERS})
    if known:
        return ' OR '.join(known)
    return stated if stated.lower() != 'unknown' and 0 < len(stated) < 60 and '\n' not in stated else ''
