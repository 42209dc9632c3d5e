"""Predictions for a folder of images: Ray Data streams them through encoder actors that hold the model's head too.

    read, decode (CPU tasks, uint8 pixels)  ->  encode, predict (actors)  ->  a class per image  ->  Parquet parts

Of an image nothing is kept but its row: the feature bank is not used, and neither pixels nor features leave the actors
for the driver. The sorted listing is cut into chunks (listing.py); a chunk is one part, named by the files it covers
(parts.py). So what is done can be told from names, and the folder (folder.py) ends as a function of files, model and
options, however often the job was killed. Each batch says whether it looks like a domain that the model does not know
(drift.py), and its strangest images can be handed over for labelling (suggest.py).
"""
