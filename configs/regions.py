"""Lian et al. of Table 1: a network on the whole face, or on a region of it.

The whole face by default; `configs/regions.py:mouth` and likewise eyes, nose,
nose_to_eyes, nose_to_mouth, mouth_to_eyes. The report draws class activation
maps. The authors' hyper-parameters are not published: this is base DCNN with
average pooling of its last map.

python -m dbl_jax.main --config=configs/regions.py --workdir=runs/regions
"""

from ml_collections import ConfigDict

from dbl_jax import config as defaults


def get_config(region: str = "face") -> ConfigDict:
  config = defaults.base()
  config.data.region = region
  config.model = defaults.dcnn()
  config.model.pooling = "average"
  config.classify = defaults.supervised_dcnn()
  return config
