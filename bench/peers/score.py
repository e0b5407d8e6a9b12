"""The answers of a checkpoint of warmstart, under the transform and in the order of every other side.

Not a side, and not timed.
"""

import json

import timm
from common import arguments, metadata, score, val_set
from safetensors.torch import load_file

args = arguments()
model = timm.create_model(metadata(args.weights)["arch"], num_classes=len(val_set(args).classes))
model.load_state_dict(load_file(args.checkpoint))
print(json.dumps({"right": score(args, model.to(args.device))}))
