"""Trees and archives: each file is a document of the right kind, with language and licence, or is passed over."""

import io
import os
import tarfile
import zipfile

import fsspec
import pytest
import zstandard

from llm_jax.corpus.document import Broken, Raw
from llm_jax.corpus.read import languages, licences, unit
from llm_jax.corpus.read.source import Skipped, Source, open_source

MIT = 'MIT License\n\nCopyright (c) X\n\nPermission is hereby granted, free of charge, to any person obtaining a copy\n'
BSD = 'Redistribution and use in source and binary forms, with or\n * without modification\n * Neither the name of X\n'
# path -> (content, kind, language, licence) or the reason that it is not read.
TREE = {
    'LICENSE': (MIT, 'skip.licence'),
    'README.md': ('# Read me', 'markdown', '', 'MIT'),
    'NOTES': ('only words\n', 'text', '', 'MIT'),
    'notes.txt': ('words\n', 'text', '', 'MIT'),
    'page.html': ('<p>page', 'html', '', 'MIT'),
    'run': ('#!/usr/bin/env python3\nprint()\n', 'code', 'python', 'MIT'),
    'go.sh': ('echo\n', 'code', 'bash', 'MIT'),
    'book.ipynb': ('{"cells": []}', 'notebook', '', 'MIT'),
    'CMakeLists.txt': ('project(x)', 'code', 'cmake', 'MIT'),
    'src/a.py': ('# -*- coding: latin-1 -*-\nname = "é"\n'.encode('latin-1'), 'code', 'python', 'MIT'),
    'src/tagged.c': ('// SPDX-License-Identifier: GPL-2.0-only\nint x;\n', 'code', 'c', 'GPL-2.0-only'),
    'src/c.h': ('#include <stdio.h>\nstruct a { int x; };\n', 'code', 'c', 'MIT'),
    'src/cpp.h': ('#pragma once\nnamespace a {\n}\n', 'code', 'cpp', 'MIT'),
    'src/objc.h': ('#import "x.h"\n@interface A\n@end\n', 'code', 'objective-c', 'MIT'),
    'lib/COPYING': (BSD, 'skip.licence'),
    'lib/b.js': ('var b\n', 'code', 'javascript', 'BSD-3-Clause'),
    'lib/deep/c.rs': ('fn main() {}\n', 'code', 'rust', 'BSD-3-Clause'),
    'lib/logo.png': (b'\x89PNG\r\n\x1a\n', 'skip.suffix'),
    'lib/table.csv': ('a,b\n', 'skip.suffix'),
    'lib/data.json': ('{}', 'code', 'json', 'BSD-3-Clause'),
    'lib/empty.py': (' \n', 'skip.empty'),
    'lib/compiled.py': (b'\x7fELF\0\0\0', 'skip.binary'),
    'lib/huge.js': ('x' * (1 << 20) + 'y', 'skip.too_large'),
    '.git/config': ('[core]', 'skip.no_sources'),
    'node_modules/x/index.js': ('x', 'skip.no_sources'),
}


def read(path, **options):
    return [record for one in open_source('s', Source(path=str(path), **options)) for record in one.read()]


def build(directory):
    for path, (content, *_) in TREE.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(content if isinstance(content, bytes) else content.encode())
    return directory


def check(found, prefix=''):
    """Whether the records are what TREE says."""
    by_path = {r.where.removeprefix(prefix): r for r in found}
    assert len(by_path) == len(found)
    for path, (content, *expected) in TREE.items():
        if path not in by_path and expected == ['skip.no_sources']:
            path = path.split('/')[0]  # counted as one
        record = by_path.pop(path)
        if len(expected) == 1:
            assert isinstance(record, Skipped) and record.reason == expected[0], path
        else:
            assert [record.kind, record.language, record.licence] == expected, path
            text = content if isinstance(content, str) else content.decode('latin-1')
            assert record.content == (text.encode() if record.kind == 'html' else text), path
    assert not by_path


# --- Trees -----------------------------------------------------------------------------


def test_a_tree(tmp_path):
    check(read(build(tmp_path)))


def test_a_tree_in_the_cloud(tmp_path):
    memory = fsspec.filesystem('memory')
    memory.put(str(build(tmp_path)), '/bucket/tree', recursive=True)
    check(read('memory://bucket/tree'))


def test_code_has_html_and_no_other_prose_of_its_own(tmp_path):
    (tmp_path / 'a.html').write_text('<p>{{ x }}')
    (found,) = read(tmp_path, format='code')
    assert (found.kind, found.language, found.content) == ('code', 'html', '<p>{{ x }}')


def test_units_of_a_tree(tmp_path, monkeypatch):
    build(tmp_path)
    whole = read(tmp_path)
    monkeypatch.setattr(unit, 'UNIT_BYTES', 60)
    inputs = open_source('s', Source(path=str(tmp_path)))
    assert len(inputs) > 4 and len({one.name for one in inputs}) == len(inputs)
    assert [r for one in inputs for r in one.read()] == whole
    before = {one.name: one.fingerprint for one in inputs}
    os.utime(tmp_path / 'src/a.py', (1, 1))
    after = {one.name: one.fingerprint for one in open_source('s', Source(path=str(tmp_path)))}
    assert sum(before[name] != after[name] for name in before) == 1
    os.utime(tmp_path / 'LICENSE', (1, 1))  # stands in each document
    assert all(after[one.name] != one.fingerprint for one in open_source('s', Source(path=str(tmp_path))))


def test_links_are_not_followed(tmp_path):
    (tmp_path / 'a.py').write_text('x')
    (tmp_path / 'b.py').symlink_to(tmp_path / 'a.py')
    (tmp_path / 'loop').symlink_to(tmp_path)
    (tmp_path / 'nowhere.py').symlink_to(tmp_path / 'gone')
    found = read(tmp_path)
    assert [r.where for r in found if isinstance(r, Raw)] == ['a.py']
    assert [r.where for r in found if isinstance(r, Skipped)] == ['b.py', 'loop', 'nowhere.py']
    assert {r.reason for r in found if isinstance(r, Skipped)} == {'skip.link'}


def test_environments_are_no_sources(tmp_path):
    (tmp_path / 'env').mkdir()
    (tmp_path / 'env/pyvenv.cfg').write_text('home = /usr')
    (tmp_path / 'env/a.py').write_text('x')
    (tmp_path / 'b.py').write_text('x')
    assert [r.where for r in read(tmp_path)] == ['env', 'b.py']


def test_formats_of_prose(tmp_path):
    for path in ('a.txt', 'b', 'c.htm', 'd.md', 'e.py', 'f.php'):
        (tmp_path / path).write_text(f'text of {path}')
    where = lambda **options: [r.where for r in read(tmp_path, **options) if isinstance(r, Raw)]
    assert where(format='text') == ['a.txt', 'b'] and where(format='markdown') == ['d.md']
    assert where(format='html') == ['b', 'c.htm', 'f.php']
    assert where(format='text', include='*.p*') == ['e.py', 'f.php']
    assert [r.kind for r in read(tmp_path / 'e.py', format='gutenberg')] == ['gutenberg']
    assert len(read(tmp_path, format='text')) == 6


def test_gutenberg_is_seen_by_its_marks(tmp_path):
    (tmp_path / 'a.txt').write_text('x\n*** START OF THIS PROJECT GUTENBERG EBOOK A ***\n')
    (tmp_path / 'b.txt').write_text('The Project Gutenberg Etext of B\n')
    (tmp_path / 'c.txt').write_text('printed by Gutenberg as a project\n')
    assert [r.kind for r in read(tmp_path / '*.txt')] == ['gutenberg', 'gutenberg', 'text']


def test_text_files(tmp_path):
    (tmp_path / 'a.txt').write_bytes('Größe\r\n'.encode('utf-16'))
    (tmp_path / 'b.txt').write_bytes('Größe\r'.encode('cp1252'))
    (tmp_path / 'c.txt').write_bytes(b'%PDF-1.4\n')
    (tmp_path / 'd.txt.zst').write_bytes(zstandard.compress(b'packed'))
    (tmp_path / 'e.txt.gz').write_bytes(b'no gzip')
    (tmp_path / 'f.txt.zst').write_bytes(zstandard.compress(b'0' * 10**7))
    a, b, c, d, e, f = read(tmp_path / '*', max_bytes=1000)
    assert (a.content, b.content, d.content) == ('Größe\r\n', 'Größe\r', 'packed')
    assert (c.reason, e.reason, f.reason) == ('read.binary', 'read.damaged', 'skip.too_large')
    assert d.id == 's/d.txt.zst#0'


# --- Archives --------------------------------------------------------------------------


def write_tar(path, entries):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as tar:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            data = content if isinstance(content, bytes) else content.encode()
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    data = buffer.getvalue()
    path.write_bytes(zstandard.compress(data) if path.suffix == '.zst' else data)
    return data


def write_archive(path):
    entries = [(name, content) for name, (content, *_) in TREE.items()]
    if path.suffix == '.zip':
        with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
            for name, content in entries:
                archive.writestr(name, content)
    else:
        write_tar(path, reversed(entries))
    return path


@pytest.mark.parametrize('name', ['a.tar', 'a.tar.zst', 'a.zip'])
def test_archives_are_read_like_trees(tmp_path, monkeypatch, name):
    path = write_archive(tmp_path / name)
    whole = read(path)
    check(whole, prefix=f'{name}/')
    monkeypatch.setattr(unit, 'UNIT_BYTES', 300)
    inputs = open_source('s', Source(path=str(path)))
    assert len(inputs) > 3 if name != 'a.tar.zst' else len(inputs) == 1
    assert [r for one in inputs for r in one.read()] == whole
    assert {r.where for r in read(path, include='*/a.py')} == {f'{name}/src/a.py'}


def test_a_tar_with_everything(tmp_path):
    long = 'd' * 120 + '/' + 'n' * 120 + '.txt'
    headers = {'comment': 'ü' * 300}
    with tarfile.open(tmp_path / 'a.tar.gz', 'w:gz', format=tarfile.PAX_FORMAT, pax_headers=headers) as tar:
        for name in ('./x.txt', long, 'x.txt'):
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b'text'))
        for name, kind in (('dir', tarfile.DIRTYPE), ('link.txt', tarfile.SYMTYPE), ('pipe.txt', tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, 'x.txt'
            tar.addfile(info)
    found = read(tmp_path / 'a.tar.gz')
    assert [r.where.removeprefix('a.tar.gz/') for r in found] == ['x.txt', long, 'x.txt', 'link.txt', 'pipe.txt']
    assert [r.reason for r in found[3:]] == ['skip.link', 'skip.no_file']
    assert len({r.id for r in found[:3]}) == 3


@pytest.mark.parametrize('name', ['a.tar', 'a.tar.zst'])
def test_damaged_tars(tmp_path, name):
    entries = [(f'{i}.txt', f'text {i} ' * 200) for i in range(10)]
    path = tmp_path / name
    data = write_tar(path, entries)
    write = lambda data: path.write_bytes(zstandard.compress(data) if path.suffix == '.zst' else data)
    good = [r.content for r in read(path)]
    assert good == [content for _, content in entries]
    start = data.index(b'5.txt')
    write(data[:start] + b'\xff' * 512 + data[start + 512 :])  # the header of one
    found = read(path)
    assert sorted(r.content for r in found if isinstance(r, Raw)) == sorted(good[:5] + good[6:])
    assert [r.reason for r in found if isinstance(r, Broken)] == ['read.damaged']
    write(data[: start + 512 + 700])  # cut off inside one
    found = read(path)
    assert [r.content for r in found if isinstance(r, Raw)] == good[:5] and isinstance(found[-1], Broken)
    last = data.index(b'9.txt')
    write(data[:last] + b'\xff' * 512 + data[last + 512 :])
    found = read(path)
    assert [r.content for r in found if isinstance(r, Raw)] == good[:9] and any(isinstance(r, Broken) for r in found)
    write(data + data)  # joined
    assert [r.content for r in read(path) if isinstance(r, Raw)] == good * 2
    write(b'no tar at all' * 100)
    assert [type(r) for r in read(path)] == [Broken]


def test_a_compressed_tar_that_is_cut_off(tmp_path):
    import random

    rng = random.Random(0)
    write_tar(tmp_path / 'a.tar.zst', [(f'{i}.txt', rng.randbytes(5000).hex()) for i in range(100)])
    data = (tmp_path / 'a.tar.zst').read_bytes()
    (tmp_path / 'a.tar.zst').write_bytes(data[: len(data) // 2])
    found = read(tmp_path / 'a.tar.zst')
    assert isinstance(found[-1], Broken) and found[-1].reason == 'read.damaged' and len(found) > 1


def test_damaged_zips(tmp_path):
    path = write_archive(tmp_path / 'a.zip')
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo('src/c.h').header_offset
    data[offset + 40 : offset + 60] = b'\xff' * 20
    path.write_bytes(data)
    found = read(path)
    assert [(r.where, r.reason) for r in found if isinstance(r, Broken)] == [('a.zip/src/c.h', 'read.damaged')]
    assert len(found) == len(TREE)
    path.write_bytes(data[: len(data) // 2])
    assert [type(r) for r in read(path)] == [Broken]


def test_a_zip_that_calls_a_name_utf8_which_is_not(tmp_path):
    path = tmp_path / 'a.zip'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('é.txt', 'text')
    path.write_bytes(path.read_bytes().replace('é'.encode(), b'\xff\xfe'))
    (found,) = read(path)
    assert (found.where, found.reason) == ('a.zip', 'read.damaged')
    assert "b'\\xff\\xfe.txt' is UTF-8, and it is not" in found.detail


@pytest.mark.parametrize(
    'record', [Skipped('s', 'a\udcff', 'skip.empty'), Broken('s', 'a\udcff', 'read.no_text', '\udcff')]
)
def test_records_that_are_left_out_have_names_that_can_be_written(record):
    assert record.where == 'a\ufffd'
    assert getattr(record, 'detail', '\ufffd') == '\ufffd'


# --- Languages and licences ------------------------------------------------------------


@pytest.mark.parametrize(
    ('path', 'text', 'language'),
    [
        ('a.PY', '', 'python'), ('Makefile', '', 'makefile'), ('x/Dockerfile', '', 'dockerfile'),
        ('a', '#!/bin/sh -e\n', 'bash'), ('a', '#!/usr/bin/env -S node --x\n', 'javascript'), ('a', '# x', ''),
        ('a', '#!/usr/bin/python3.11\n', 'python'), ('a.pl', 'my $x = 1;\n', 'perl'), ('a.unknown', '#!/bin/sh', ''),
        ('a.pl', ':- module(x).\n', 'prolog'), ('a.m', '@interface A\n', 'objective-c'),
        ('a.m', '% comment\nx = 1;\n', 'matlab'), ('a.v', 'module x;\nendmodule\n', 'verilog'),
        ('a.v', 'Require Import Arith.\nLemma x : 1 = 1.\n', 'coq'), ('a.ts', 'const x: number = 1\n', 'typescript'),
        ('a.ts', '<?xml version="1.0"?><TS></TS>', 'xml'), ('a.h', '#include <vector>\n', 'cpp'),
        ('a.h', '#include <string.h>\nextern "C" {}\n', 'c'), ('a.h', 'std::string x;', 'cpp'),
        ('a.h', 'class A : public B {\n};', 'cpp'), ('a.h', '/* the class of the struct */ int class_of;\n', 'c'),
    ],
)  # fmt: skip
def test_languages(path, text, language):
    assert languages.language_of(path, text) == language


def test_headers_of_a_real_library():
    """numpy's headers are C, with few in C++."""
    import numpy

    found = read(os.path.dirname(numpy.get_include()), format='code', include='*.h')
    names = [r.language for r in found if isinstance(r, Raw)]
    assert len(names) > 20 and set(names) <= {'c', 'cpp'} and names.count('c') > 0.6 * len(names)


def test_licences():
    assert licences.recognise(MIT) == 'MIT' and licences.recognise(BSD) == 'BSD-3-Clause'
    assert licences.recognise('                 Apache License\n           Version 2.0, January 2004\n') == 'Apache-2.0'
    lesser = 'GNU LESSER GENERAL PUBLIC LICENSE\n  Version 3, 29 June 2007\n with GNU General Public License version 3'
    assert licences.recognise(lesser) == 'LGPL-3.0'
    assert licences.recognise('all rights reserved') == ''
    assert licences.of_directories({'LICENSE-MIT': 'MIT', 'LICENSE-APACHE': 'Apache-2.0'}) == {'': 'Apache-2.0 OR MIT'}
    assert licences.of_directories({'a/LICENSE': 'MIT', 'a/LICENSE.zlib': 'Zlib'}) == {'a': 'MIT'}
    assert licences.tag('/* SPDX-License-Identifier: MIT OR Apache-2.0 */') == 'MIT OR Apache-2.0'
    names = ('LICENSE', 'licence.txt', 'COPYING.LESSER', 'UNLICENSE', 'license.py', 'licensed.md', 'copyright')
    assert [licences.is_licence_file(name) for name in names] == [True, True, True, True, False, False, False]
