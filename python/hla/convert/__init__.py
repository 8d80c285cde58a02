"""python -m hla.convert: the softmax self-attention of a Wan model becomes Hadamard linear attention.

    python -m hla.convert MODEL --clips FOLDER --budget 0.125

writes MODEL/hla, which `hla generate` and hla.diffusers load. The stages, a file each, in the order of their work:

    encode.py   clips and captions -> latents and text rows
    record.py   queries, keys, values and outputs of the teacher's self-attention on noised latents
    distil.py   feature maps of every candidate for every block, fitted to those outputs
    choose.py   a candidate or softmax for each block: the least loss within a budget of operations
    tune.py     maps, and weights of the transformer, trained on flow matching and the teacher's velocity
    report.py   one HTML page: losses, the choice, pictures beside the teacher's, operations, speed

What they stand on: options.py, job.py (folder, settings, log), clips.py (encoded clips, noise), model.py (teacher,
velocity, losses), candidates.py (names and costs), figures.py (pictures and curves).
"""
