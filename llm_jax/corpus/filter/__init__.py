"""Rules that keep or drop a document, by group: each module has its thresholds (`Options`) and `make(options)`.

    gopher       what prose looks like: words, symbols, bullets, stop words
    repetition   lines, paragraphs and n-grams that come again and again
    c4           lines that are no sentences; pages with too little of them
    fineweb      punctuation, short lines, repeated lines, lists
    refinedweb   lines that are furniture of a web page
    code         line lengths, comments, data in the guise of code
    urls         hosts and addresses that are not wanted
    language     the language, and whether it is one of those wanted

What they measure is kept in `Document.signals`, so that other thresholds can be tried
without the text (`rules.missed`).
"""
