"""Floor 3: corpora, manifests, features on disk, batches. lhotse lives here and nowhere else."""
