"""The six of torchvision's transforms that the peer scripts use, for machines where torchvision has no build.
`peer.py` copies this file into a temporary package; nothing else imports it."""
import enum, random

import numpy as np, torch
from PIL import Image

class InterpolationMode(enum.Enum):
    NEAREST, BILINEAR, BICUBIC, LANCZOS = Image.NEAREST, Image.BILINEAR, Image.BICUBIC, Image.LANCZOS

class Compose:
    def __init__(self, steps): self.steps = steps
    def __call__(self, x):
        for s in self.steps: x = s(x)
        return x

class Resize:
    "The shorter side to `size` pixels."
    def __init__(self, size, interpolation=InterpolationMode.BILINEAR): self.size, self.how = size, interpolation.value
    def __call__(self, im):
        short = min(im.size)
        return im if short==self.size else im.resize([int(self.size*s/short) for s in im.size], self.how)

class RandomCrop:
    "A square anywhere in the picture."
    def __init__(self, size): self.size = size
    def place(self, room): return random.randint(0, room)
    def __call__(self, im):
        x, y = (self.place(s-self.size) for s in im.size)
        return im.crop((x, y, x+self.size, y+self.size))

class CenterCrop(RandomCrop):
    def place(self, room): return round(room/2)

class RandomHorizontalFlip:
    "Mirrored with a probability."
    def __init__(self, p=.5): self.p = p
    def __call__(self, im): return im.transpose(Image.FLIP_LEFT_RIGHT) if random.random()<self.p else im

class ToTensor:
    "Bytes as numbers from 0 to 1, channels first."
    def __call__(self, im): return torch.from_numpy(np.array(im)).permute(2,0,1).contiguous().float().div(255)

class Normalize:
    def __init__(self, mean, std): self.mean, self.std = (torch.tensor(v).view(-1,1,1) for v in (mean, std))
    def __call__(self, x): return (x-self.mean)/self.std
