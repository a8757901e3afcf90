"""From files to batches. A map of the room:

sources.py        the `Source` interface, and `open_source`, which opens what `data.source` names
folders.py        a folder of images for each class
kaggle.py         Kaggle's unpacked ImageNet archive
tars.py           the official tars of ILSVRC-2012 and 2010, read without unpacking, and their development kit
records.py        TFDS directories: the embedded set, prepared records, any data set of TFDS by name
tfds_metadata.py  the metadata of a TFDS directory: shards, features, classes
record_files.py   array_record and TFRecord files: writing, and reading by position
classes.py        WordNet ids and readable names of ImageNet's classes
pipeline.py       the order of examples, and batches decoded ahead of training
decode.py         from an encoded image to the central square of section 2
preprocess.py     from an image to a net's input: resize rule, crop, mean and scale
statistics.py     mean image and colour components of a training set
prepare.py        the command that turns any source into prepared records
inference.py      images through a net: find, decode ahead, batch, pad, run, un-pad
"""
