"""Fine-tuning a small change of a frozen model: LoRA, DoRA, their files, and a base in few bits.

Everything is a pure function of trees of parameters. An adapter is a dict 'lora' beside the kernel that it changes, in
the same tree: layers that are stacked have stacked adapters, and what walks over parameters (scan, stages, decoding,
checkpoints, `train.trainable`) needs to know nothing of it. `nn.einsum.Einsum` and `nn.embed.Embed` read it.
"""
