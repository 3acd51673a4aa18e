"""The best sampler for a network and a number of network calls: found, proven and exported.

The sampler is found as a table: the log-SNRs at which the network is asked, and the weights that
each step gives to the estimates so far. The modules are the parts of the search:

    tune          `tune`, which does all of it, and `check`, which only repeats the proof
    search        the stages of a search, one after the other
    teacher       where trajectories end, found by runs with many network calls
    candidates    the presets on standard grids, the best of which has to be beaten
    tables        the families of tables that are fitted
    fit           the method that fits them
    trials        how tables are run, and the loss by which they are compared
    effort        the budgets
    report        the result, in numbers and in words
    sources       what is tuned on the command line: a model's folder or a pipeline's
"""
