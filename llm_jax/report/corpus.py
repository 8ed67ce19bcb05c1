def render(manifest, tallies):
    return {'report.md': 'x'}
