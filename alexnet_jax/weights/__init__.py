"""Reading and writing trained weights.

pretrained     reading trained nets, save_pretrained, a workdir's net.json
initial        the layers that a new net takes from a trained one
layouts        conversion between our layout of the weights and torchvision's and Caffe's
formats        reading a file of any format; writing .npz and .safetensors
recognise      finding AlexNet's layers among named arrays, by their shapes
torch_files    PyTorch's .pth, read without PyTorch
numpy_files    .npy and .npz, with objects in them as caffe-tensorflow wrote them
pickles        what both are read with: no code from a file runs
caffe_files    Caffe's .caffemodel and mean images, read without Caffe
published      downloads of the published weights by name
lpips/         the linear weights of LPIPS, for perceptual.py
"""
