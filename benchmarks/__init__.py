"""What it costs, side by side with what it replaces.

    make bench                                       everything (about an hour on 2 cores)
    make bench ARGS="classes step --quick"           some of it, on less
    make bench ARGS="--out bench --repeats 5"        results.json and results.html into a folder

A module per benchmark; each has `measure(repeats, quick) -> Result`. Times are medians of interleaved repeats, and the
ratio between two of the same run is what counts: an absolute time says more about the machine than about the program.
"""
