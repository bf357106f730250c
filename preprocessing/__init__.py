"""Scanner files to HDF5 shards: numpy, pydicom, SimpleITK, vtk, nibabel, h5py; knows no torch."""
