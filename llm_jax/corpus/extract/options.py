"""How text is taken out of records."""

import dataclasses

from llm_jax.config.schema import Part, field, section


@dataclasses.dataclass(frozen=True)
class Code:
    """Which files of source code are no code that anybody wrote.

    The two thresholds on lines are those of The Stack and StarCoder (Kocetkov et al.
    2022, arXiv:2211.15533; Li et al. 2023, arXiv:2305.06161, section 3.1), which take
    such files for generated or for data.
    """

    licence_headers: bool = field(False, 'whether comments at the top that state a licence are kept')
    generated: bool = field(False, 'whether generated files are kept')
    minified: bool = field(False, 'whether minified files and source maps are kept')
    vendored: bool = field(False, 'whether copies of other projects within a project are kept')
    data: bool = field(False, 'whether lock files and files that hold only data are kept')
    max_line: int = field(1000, 'characters of the longest line of a file that is not minified')
    max_mean_line: float = field(100.0, 'characters of the mean line of a file that is not minified')
    max_data: float = field(0.9, 'share of the characters of a file that may be in literals')


@dataclasses.dataclass(frozen=True)
class Extract:
    """How text is taken out of records of each kind."""

    html: Part = field(
        'main', "main text of a page: main, trafilatura, trafilatura_fast, resiliparse, visible, or a callable's name"
    )
    max_page: int = field(8_000_000, 'characters of the largest page that is parsed')
    max_tags: int = field(300_000, 'tags of the largest page that is parsed, opening and closing ones')
    unwrap: bool = field(True, 'whether paragraphs of books become one line each; verse and tables keep their lines')
    code: Code = section(Code, 'source code')
