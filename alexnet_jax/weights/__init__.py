"""Reading and writing trained weights.

pretrained     reading trained nets, save_pretrained, initial weights for a run, a workdir's net.json
layouts        conversion between our layout of the weights and torchvision's and Caffe's
formats        reading and writing .npz and .safetensors, and finding AlexNet's layers in any file
torch_files    PyTorch's .pth, read without PyTorch and without running code from the file
caffe_files    Caffe's .caffemodel and .binaryproto, read without Caffe
published      downloads of the published weights by name
lpips/         the linear weights of LPIPS, for perceptual.py
"""
