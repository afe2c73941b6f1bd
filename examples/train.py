"""Training with your own loop, on one process or many: ``accelerate launch examples/train.py images``.

The folder holds images and their captions (cat.png, cat.txt). If the script is stopped in any way and started again,
it goes on where the last checkpoint was written.
"""

import argparse

from imagen_pytorch import Imagen, ImagenTrainer, Unet
from imagen_pytorch.data import Dataset

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", help="images with captions, a path or a URL")
parser.add_argument("--checkpoints", default="checkpoints", help="a folder, a path or a URL")
parser.add_argument("--steps", type=int, default=10_000)
parser.add_argument("--every", type=int, default=500, help="steps between two checkpoints")
parser.add_argument("--batch-size", type=int, default=16, help="of all processes together")
parser.add_argument("--size", type=int, default=64, help="side of the images")
parser.add_argument("--dim", type=int, default=64, help="width of the network")
parser.add_argument("--text-encoder", default="google/t5-v1_1-base")
options = parser.parse_args()

imagen = Imagen(
    Unet(dim=options.dim, dim_mults=(1, 2, 4), layer_attns=(False, False, True)),
    image_sizes=options.size,
    text_encoder_name=options.text_encoder,
)
# the folder's newest checkpoint is loaded here, if there is one
trainer = ImagenTrainer(imagen, lr=3e-4, checkpoint_path=options.checkpoints, checkpoint_every=options.every, seed=0)
trainer.add_train_dataset(Dataset(options.folder, options.size), batch_size=options.batch_size, shuffle=True)

while trainer.num_steps_taken() < options.steps:
    loss = trainer.train_step()
    if trainer.num_steps_taken() % 50 == 0:
        trainer.print(f"step {trainer.num_steps_taken()}: loss {loss:.4f}")
trainer.save_to_checkpoint_folder()
trainer.wait_for_saves()
