"""A predictor in place of a run, and photos for it."""

import numpy as np
import pytest
from PIL import Image

from dbl_jax.data import face_crops, synthetic
from dbl_jax.serving import predict


@pytest.fixture(scope="session")
def faces():
  """Twelve drawn faces, uint8[12, 96, 96, 3]."""
  return synthetic.make_split("test", 12, 96, 1)[0]


@pytest.fixture(scope="session")
def photo(faces):
  """A picture with one of the faces in it."""
  large = Image.new("RGB", (400, 300), (120, 120, 120))
  large.paste(Image.fromarray(faces[1]).resize((160, 160)), (40, 70))
  return large


@pytest.fixture(scope="session")
def predictor(faces):
  """Its probabilities are those of how light a face is."""

  def classify(crops):
    light = crops.mean(axis=(1, 2, 3)) / 255
    return np.stack([(1 - light) / 2, light * 0 + 0.5, light / 2], axis=1)

  def activation(crops, classes):
    assert crops.shape[0] == classes.shape[0] == 1
    return np.arange(4.0).reshape(1, 2, 2)

  names = ("dark", "</script><b>middle", "light")
  template = face_crops.template_of(faces)
  return predict.Predictor(
    names, 48, "face", template, False, True, classify, activation
  )
