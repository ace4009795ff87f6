"""Networks. Who imports this wing has Keras as it needs it, also without `runs.import_tensorflow`."""

from ..runs import settle_keras

settle_keras()
