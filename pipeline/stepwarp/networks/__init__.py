"""Networks of two images, `net(fixed, moving)`, made so that an untrained one finds the identity; and one of an image.

Plain torch: importing MONAI's blocks takes 7 s, longer than a registration may."""

from stepwarp.networks.encoder import Encoder
from stepwarp.networks.icon_unet import IconUNet
from stepwarp.networks.mlp import FCNet
from stepwarp.networks.segmenter import Segmenter
from stepwarp.networks.unet import UNet

__all__ = ["Encoder", "FCNet", "IconUNet", "Segmenter", "UNet"]
