"""Post-training: losses of token log-probabilities, of scores and of logits, and what advantages are made of.

A loss is a pair (sum, normaliser): the sum over a batch or a micro-batch, and what the sums of all micro-batches are
divided by together. Gradients of any of them reach the model through `train.losses.token_log_probs`. What is taken
over a whole batch (group means, whitening, the reference point of KTO) is a function of its own, called before
micro-batches are split.

Shapes: B rows, L targets of a row, P pairs, N groups of G samples each, C classes, D model, V vocabulary.
"""
