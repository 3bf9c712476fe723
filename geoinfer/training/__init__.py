"""Making a model: samples, targets, augmentation and the fit. Needs the extra `train`."""
