"""Trained weights in and out.

pretrained     load_pretrained, save_pretrained, weights to start a run from, a workdir's net.json
layouts        torchvision's and Caffe's arrangement of the weights against ours
formats        reading and writing .npz and .safetensors, and finding AlexNet's layers in any file
torch_files    PyTorch's .pth, read without PyTorch and without running code from the file
caffe_files    Caffe's .caffemodel and .binaryproto, read without Caffe
published      downloads of the published weights by name
"""
