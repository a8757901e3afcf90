"""The input pipeline, from files to batches:

sources.py        the `Source` interface, and `open_source`, which opens `data.source`
folders.py        one folder of images per class
kaggle.py         Kaggle's unpacked ImageNet archive
tars.py           the official tars of ILSVRC-2012 and 2010, read without unpacking, and their development kit
records.py        TFDS directories: the embedded set, prepared records, any TFDS data set by name
tfds_metadata.py  the metadata of a TFDS directory, written and read by TFDS
record_files.py   array_record and TFRecord files: writing, random access
classes.py        WordNet ids and readable names of ImageNet's classes
pipeline.py       the order of examples; batches read and decoded ahead of training by tf.data
batches.py        batches placed on the mesh; unreadable images named
decode.py         from an encoded image to the central square of section 2
preprocess.py     from an image to a net's input: resize rule, crop, mean and scale
statistics.py     mean image and principal colour components of a training set
prepare.py        the command that converts any source to prepared records
split.py          the command that splits a folder of class folders into training and validation images
inference.py      runs a net on images: find, decode ahead, batch, pad, run, un-pad
"""
