"""The only room that draws: pages, charts and tables from plain data of the other rooms.

charts, ticks, tables, page and templates/ are what pages share; run_page, corpus, plan, coord_check, transfer,
extrapolation and comparison are one page each. model and show are for the terminal.
"""

from llm_jax.report.run_page import write_report

__all__ = ['write_report']
