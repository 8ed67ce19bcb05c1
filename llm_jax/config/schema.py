"""Every field of an experiment's configuration: its default, its type, its meaning.

`load.py` turns an experiment file into these frozen dataclasses.
"""

from collections.abc import Iterable
import dataclasses
from typing import Any, Literal

from llm_jax.config import parts as parts_lib
from llm_jax.config.errors import ConfigError, Part
from llm_jax.config.fields import Dtype, Duration, Options, field, section

__all__ = ['Config', 'ConfigError', 'Dtype', 'Duration', 'Options', 'Part', 'field', 'section']


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary positions; what each scaling does stands in `nn/rope.py`."""

    theta: float = field(10_000.0, 'base wavelength')
    fraction: float = field(1.0, 'share of each head that is rotated (partial rotary)')
    interleaved: bool = field(False, 'whether neighbours (2i, 2i+1) form a pair; false pairs halves (i, i + K/2)')
    scaling: str = field('none', 'none, linear, ntk, dynamic, yarn, llama3, longrope')
    factor: float = field(1.0, 'how many times longer the context is made')
    original_len: int = field(0, 'context the model was trained at before it was scaled; 0 means max_seq_len / factor')
    low_freq_factor: float = field(1.0, '"llama3": wavelengths above original_len / this are stretched')
    high_freq_factor: float = field(4.0, '"llama3": wavelengths below original_len / this are kept')
    beta_fast: float = field(32.0, '"yarn": dimensions that turn more often than this in original_len are kept')
    beta_slow: float = field(1.0, '"yarn": dimensions that turn less often than this are stretched')
    round_betas: bool = field(True, '"yarn": whether the two borders are rounded to whole dimensions')
    attention_factor: float = field(0.0, '"yarn", "longrope": what queries and keys are multiplied by; 0 computes it')
    mscale: float = field(0.0, '"yarn" as in DeepSeek: growth of attention_factor with log(factor); 0 means 1')
    mscale_all_dim: float = field(0.0, '"yarn" as in DeepSeek: the same for the attention scale, also without rope')
    short_factors: tuple = field((), '"longrope": divisor of each frequency up to original_len')
    long_factors: tuple = field((), '"longrope": divisor of each frequency beyond it')


@dataclasses.dataclass(frozen=True)
class Mla:
    """Multi-head latent attention."""

    q_rank: int = field(0, 'width of the latent that queries are made of; 0 makes them of the residual stream')
    kv_rank: int = field(64, 'width of the latent that keys and values are made of, which is cached')
    d_nope: int = field(32, 'width of the part of queries and keys without position')
    d_rope: int = field(16, 'width of the rotated part, of which all heads share the key')
    d_value: int = field(32, 'width of the values')
    norm_eps: float = field(0.0, "added to the variance inside the latents' norms; 0 means model.norm_eps")


@dataclasses.dataclass(frozen=True)
class Moe:
    """Mixture of experts."""

    n_experts: int = field(8, 'experts E')
    top_k: int = field(2, 'experts that a token goes to')
    d_ff: int = field(0, 'hidden width of one expert; 0 means model.d_ff')
    activation: Part = field(
        'swiglu', 'what an expert is: one of the plain feed-forwards', parts='llm_jax.nn.feed_forward:DENSE'
    )
    n_shared: int = field(0, 'experts that every token goes to, as one of n_shared times the width')
    shared_gate: bool = field(False, 'whether a sigmoid of the token scales the shared experts')
    score: Literal['softmax', 'softmax_top', 'sigmoid'] = field(
        'softmax', 'softmax over all experts, softmax_top over the chosen ones, or sigmoid'
    )
    normalize: bool = field(True, 'whether the weights of the chosen experts are made to sum to 1')
    scale: float = field(1.0, 'what those weights are multiplied by')
    n_groups: int = field(1, 'groups of experts; a token chooses top_groups of them first')
    top_groups: int = field(1, 'groups that a token may take experts from')
    group_score: Literal['max', 'top2'] = field(
        'max', 'a group counts by its best expert (max) or by its best two (top2)'
    )
    balance: Literal['none', 'aux', 'bias'] = field('aux', 'how load is balanced: none, aux (a loss), bias (loss-free)')
    aux_weight: float = field(0.01, 'weight of the balance loss of "aux"')
    z_weight: float = field(0.0, "weight of the router's z-loss")
    dispatch: Literal['all_to_all', 'gather'] = field(
        'all_to_all',
        'where experts are split over devices: all_to_all (rows travel to their expert) or gather (all rows)',
    )
    capacity_factor: float = field(1.5, 'rows that a device takes at once over an even share, at least 1; see dropless')
    dropless: bool = field(True, 'whether what is over capacity is done in further rounds; false drops it')
    bias_update_rate: float = field(1e-3, 'step by which "bias" moves the score of an over- or underloaded expert')


@dataclasses.dataclass(frozen=True)
class Mup:
    """Maximal update parametrisation: hyperparameters found at base_width hold at every width."""

    base_width: int = field(0, 'd_model at which learning rate and init_std were tuned; 0 is off', at_least=0)
    base_head: int = field(0, 'head width there, if heads grow in width; 0 means that they grow in number', at_least=0)


# The paths of adapters, as `train.trainable` has them.
ADAPTERS = '.*/lora/.*'


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Low-rank changes of frozen matrices."""

    kind: Literal['none', 'lora', 'dora'] = field('none', 'none, lora (W + s A B) or dora (and a norm for each output)')
    rank: int = field(16, 'r, the width between A and B', at_least=1)
    alpha: float = field(32.0, 'α of the scale s = α / r')
    rslora: bool = field(False, 'whether s is α / √r, so that it does not fall with the rank')
    targets: str = field(
        r'(layers|first_\d+|last_\d+)/.*', 'regex of the paths of the matrices that get one (layers/attention/q/kernel)'
    )
    dropout: float = field(0.0, 'share of the inputs that an adapter does not see in training', at_least=0, below=1)
    base: Literal['float32', 'bfloat16', 'int8', 'nf4'] = field(
        'float32', 'how the frozen matrices of the layers are held: float32, bfloat16, int8, nf4'
    )
    block: int = field(64, 'entries of "int8" and "nf4" that share a scale', at_least=2)
    double_quantise: bool = field(False, 'whether these scales are held in eight bits')

    @property
    def scale(self) -> float:
        """s."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


@dataclasses.dataclass(frozen=True)
class PartOptions:
    """Options of the model's parts: attributes of their modules, for parts of one's own."""

    position: Options = field(Options(), 'of model.position')
    norm: Options = field(Options(), 'of model.norm')
    attention: Options = field(Options(), 'of model.attention')
    feed_forward: Options = field(Options(), 'of model.feed_forward')
    residual: Options = field(Options(), 'of model.residual')
    init: Options = field(Options(), 'of model.init: keyword arguments of the scheme')


@dataclasses.dataclass(frozen=True)
class Model:
    vocab_size: int = field(0, "rows V of the embedding; 0 takes the tokenizer's size", at_least=0, per_layer=False)
    d_model: int = field(256, 'width D of the residual stream', at_least=1, per_layer=False)
    n_layers: int = field(6, 'number of blocks', at_least=1, per_layer=False)
    n_heads: int = field(4, 'query heads H', at_least=1)
    n_kv_heads: int = field(0, 'key/value heads G of "gqa"; 0 means n_heads', at_least=0)
    d_head: int = field(0, 'width K of a head; 0 means d_model / n_heads', at_least=0)
    d_ff: int = field(0, 'hidden width F; 0 means 4 D, or 8/3 D up to a multiple of 64 if gated', at_least=0)
    max_seq_len: int = field(0, 'longest context in tokens; 0 means data.seq_len', at_least=0, per_layer=False)
    pattern: tuple = field(
        (), 'fields that differ by layer, repeated over the depth: ({"window": 512}, {})', per_layer=False
    )
    first_layers: tuple = field(
        (), 'the same for the layers before the pattern begins, one entry each', per_layer=False
    )
    position: Part = field(
        'rope', 'none, learned, sinusoidal, rope, alibi, or a callable', parts='llm_jax.nn.positions:POSITIONS'
    )
    rope: Rope = section(Rope, 'rotary positions')
    norm: Part = field('rmsnorm', 'layernorm, rmsnorm, or a callable', parts='llm_jax.nn.norms:NORMS')
    norm_eps: float = field(1e-5, 'added to the variance inside the norm', at_least=0)
    norm_bias: bool = field(False, 'whether norms add a learned bias')
    norm_offset: bool = field(False, 'whether a norm multiplies by 1 + its scale, which starts at 0 (Gemma)')
    norm_scale: bool = field(True, 'whether norms have a learned scale')
    norm_at: Literal['pre', 'post', 'output', 'sandwich'] = field(
        'pre', 'where a branch is normed: pre, post, output, sandwich'
    )
    attention: Part = field('mha', 'mha, gqa, mqa, mla, or a callable', parts='llm_jax.nn.attention:ATTENTIONS')
    mla: Mla = section(Mla, 'the widths of "mla"')
    window: int = field(0, 'tokens that a query sees, itself included; 0 means all before it', at_least=0)
    attention_softcap: float = field(0.0, 'attention scores s become c tanh(s / c); 0 is off')
    attention_scale: float = field(0.0, 'what scores are multiplied by (with mup.base_head: at that width); 0 is 1/√K')
    attention_sinks: bool = field(False, 'whether each head has a learned score that takes attention nowhere')
    attention_kernel: Literal['auto', 'xla', 'splash', 'cudnn'] = field(
        'auto', 'auto (the fastest that can), xla, splash (TPU), cudnn (GPU)'
    )
    context_attention: Literal['all_gather', 'ring'] = field(
        'all_gather',
        'how rows split over mesh.context attend: all_gather (of keys and values) or ring',
        per_layer=False,
    )
    attention_gate: bool = field(False, "whether a sigmoid of the block's input gates what attention gives")
    qk_norm: Literal['none', 'head', 'whole'] = field(
        'none', 'norm of queries and keys: none, head (each head), whole (all heads together)'
    )
    feed_forward: Part = field(
        'swiglu',
        'gelu, gelu_exact, relu, relu2, swiglu, geglu, geglu_exact, swiglu_clipped, moe, or a callable',
        parts='llm_jax.nn.block:FEED_FORWARDS',
    )
    moe: Moe = section(Moe, 'the experts of "moe"')
    residual: Part = field(
        'sequential', 'sequential, parallel, parallel_two_norms, or a callable block', parts='llm_jax.nn.block:BLOCKS'
    )
    residual_scale: float = field(1.0, 'what each branch is multiplied by before it is added')
    bias: Literal[False, True, 'qkv', 'attention'] = field(
        False, 'learned biases of linear maps: false, true (all), "qkv", "attention"'
    )
    dropout: float = field(0.0, 'rate on embeddings, attention weights and branch outputs', at_least=0, below=1)
    tie_embeddings: bool = field(True, 'whether the output head is the embedding, transposed', per_layer=False)
    embed_scale: float = field(1.0, 'what embeddings are multiplied by', per_layer=False)
    logit_scale: float = field(1.0, 'what logits are multiplied by', per_layer=False)
    logit_softcap: float = field(0.0, 'logits z become c tanh(z / c); 0 is off', per_layer=False)
    init: Part = field(
        'gpt2',
        'gpt2, normal, xavier, lecun, orthogonal, zero_residual, small_embedding, or a callable',
        parts='llm_jax.init:SCHEMES',
    )
    init_std: float = field(0.02, 'standard deviation of the initial weights')
    scores: int = field(
        0,
        'outputs of the head of scores, beside that of tokens; the objective fills it in',
        at_least=0,
        per_layer=False,
    )
    mup: Mup = section(Mup, 'maximal update parametrisation')
    adapter: Adapter = section(Adapter, 'low-rank adapters on frozen matrices')
    options: PartOptions = section(PartOptions, 'what parts of your own are made with')
    dtype: Dtype = field('float32', 'dtype of the computation; parameters are always float32', per_layer=False)
    quantised: Literal['', 'int8', 'int4'] = field(
        '', 'kind of the weights in the checkpoint, of convert --quantize: int8, int4; not trained', per_layer=False
    )
    matmul: str = field('default', 'how linear maps multiply: default (in dtype), fp8, int8; not the head or routers')
    remat: Part = field(
        'none',
        'what the backward pass recomputes: none, attention, dots, offload, full, or a checkpoint policy',
        parts='llm_jax.ops.remat:POLICIES',
        per_layer=False,
    )
    scan: bool = field(True, 'whether blocks are one compiled loop; false unrolls it (slower compile)', per_layer=False)
    scan_unroll: int = field(
        1, 'repeats of the pattern in one turn of that loop; it need not divide them', at_least=1, per_layer=False
    )
    rules: tuple = field((), 'filled from mesh.rules by validate()')
    pipeline: tuple = field((0, 1), 'filled from mesh.pipeline_microbatches and mesh.pipeline_repeats by validate()')

    @property
    def kv_heads(self) -> int:
        """Key/value heads G, as the attention part says."""
        return parts_lib.attention(self).kv_heads(self)

    @property
    def head_size(self) -> int:
        """Width K of one head."""
        return self.d_head or self.d_model // self.n_heads

    @property
    def ff_size(self) -> int:
        """Hidden width F: d_ff, or what gives each feed-forward about 8 D^2 weights.

        That is 4 D for two matrices, and 8/3 D for three (Shazeer 2020), rounded up to
        a multiple of 64, which divides well over devices and matrix units.
        """
        if self.d_ff or not parts_lib.feed_forward(self).is_gated(self):
            return self.d_ff or 4 * self.d_model
        return -(-8 * self.d_model // (3 * 64)) * 64

    def layer(self, index: int) -> 'Model':
        """The config of one layer: this one, with what `first_layers` or `pattern` says of it."""
        n_first = len(self.first_layers)
        if index < n_first:
            return with_fields(self, self.first_layers[index])
        return with_fields(self, self.pattern[(index - n_first) % len(self.pattern)]) if self.pattern else self


def with_fields(section: Any, changes: Iterable[tuple[str, Any]]) -> Any:
    """A copy of a config section with some fields replaced; 'rope.theta' is a field of a part of it."""
    for name, value in changes:
        outer, _, inner = name.partition('.')
        value = with_fields(getattr(section, outer), ((inner, value),)) if inner else value
        section = dataclasses.replace(section, **{outer: value})
    return section


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    kind: str = field(
        'sentencepiece',
        'what to make of the text: sentencepiece, characters (those beyond vocab_size become bytes), bytes',
    )
    path: str = field(
        '',
        'tokenizer to use: tokenizer.json, tokenizer.model, NAME.tiktoken, the files of GPT-2 or llama2.c, a directory '
        'of one, or hf:OWNER/NAME; empty trains one',
    )
    algorithm: str = field('bpe', 'bpe or unigram')
    vocab_size: int = field(4096, 'number of tokens to train; of characters, the most; bytes are 257', at_least=1)
    split_digits: bool = field(True, 'whether each digit of a number is a token of its own')
    reserved: tuple = field((), 'names of tokens that no text becomes, such as the marks of a chat: ("<|user|>", ...)')
    sample_bytes: int = field(50_000_000, 'bytes of training text the tokenizer is trained on')


@dataclasses.dataclass(frozen=True)
class Data:
    sources: dict | str = field(
        {'stdlib': 'stdlib'},
        'name -> "stdlib", "text:GLOB", "jsonl:GLOB", "parquet:GLOB", "tfds:NAME", "tfds:DIR" or '
        '"hf:OWNER/NAME[/CONFIG][@REVISION][:SPLIT]"; or only "corpus:DIR"; '
        'or, for post-training, "conversations:PLACE", "pairs:PLACE", "unpaired:PLACE" or "labelled:PLACE", '
        'where PLACE is a GLOB of JSONL or Parquet, tfds:NAME or hf:OWNER/NAME',
    )
    mixture: dict = field({}, "name -> weight of its rows in training; empty means a corpus's own, else by size")
    validation_sources: dict | str = field({}, 'held-out sources; empty holds out documents of `sources`')
    validation_fraction: float = field(0.05, 'share of documents held out for validation', at_least=0, below=1)
    test_fraction: float = field(0.05, 'share of documents held out for the final test', at_least=0, below=1)
    split_by: Literal['hash', 'place'] = field(
        'hash', 'how these are chosen: hash (documents, by their content) or place (the end of the text of each source)'
    )
    text_field: str = field('text', 'the field that holds the text in JSONL, Parquet and TFDS')
    max_document_chars: int = field(0, 'cut longer documents at line ends; 0 never cuts')
    too_long: Literal['drop', 'cut', 'error'] = field(
        'drop', 'what becomes of a conversation or pair that is longer than a row; those dropped or cut are counted'
    )
    examples_per_row: int = field(8, 'pairs, unpaired answers or labelled texts that a row holds, at most', at_least=1)
    classes: tuple = field((), 'labels of labelled texts, in the order of the outputs: ("ham", "spam")')
    seq_len: int = field(256, 'tokens L that one row trains on', at_least=1)
    tokenizer: Tokenizer = section(Tokenizer, 'how text becomes tokens')
    cache_dir: str = field('.cache/data', 'where tokenizers and packed rows are kept between runs')
    prefetch: int = field(16, 'batches prepared ahead of the training step', at_least=1)


@dataclasses.dataclass(frozen=True)
class Chat:
    template: str = field(
        '',
        'how conversations are written: chatml, llama3, gemma, plain, llm_jax, or a file such as mine.jinja; empty '
        "takes the tokenizer's own template. A new tokenizer gets the marks of a named one",
        parts='llm_jax.chat.formats:FORMATS',
    )


@dataclasses.dataclass(frozen=True)
class Train:
    objective: Part = field(
        'next_token',
        'what is trained on and minimised: next_token, sft, preference, kto, reward, classify, distill, or a callable',
    )
    objective_options: Options = field(Options(), 'of the objective: attributes of its class, {"loss": "ipo"}')
    trainable: Part = field(
        '.*',
        'parameters to train: a regex of whole paths (layers/attention/q/kernel), or a callable of a path; ".*" is the '
        'adapters alone where model.adapter has some',
    )
    duration: Duration = field('1000 steps', 'how long to train')
    batch_size: int = field(16, 'rows of one optimizer step, over all devices', at_least=1)
    grad_accumulation: int = field(1, 'micro-batches that one optimizer step is split into', at_least=1)
    accumulation_dtype: Dtype = field('float32', 'dtype of the gradients that are summed over micro-batches')
    reproducible: bool = field(False, 'whether training is bit-equal on 1, 2, 4 and 8 devices: for debugging, slow')
    log_every: Duration = field(10, 'between lines of metrics.jsonl')
    eval_every: Duration = field('10 %', 'between evaluations on the validation split')
    eval_batches: int = field(0, 'validation batches in one evaluation; 0 means the whole split', at_least=0)
    eval_tasks: tuple = field((), 'benchmarks that are run at each evaluation, by name as of evaluate --tasks')
    eval_data: tuple = field((), 'where their files are, as of evaluate --data')
    eval_limit: int = field(100, 'first items of each benchmark; 0 takes all', at_least=0)
    sample_every: Duration = field('25 %', 'between sample completions')
    sample_prompts: tuple = field(('def ', 'import ', 'class '), 'what the samples complete')
    sample_tokens: int = field(64, 'new tokens in one sample; past the context, it sees the last ones')
    z_loss: float = field(0.0, 'weight of log(Z)^2, which keeps the logits from drifting', at_least=0)
    loss_chunk: int = field(
        0, 'tokens per device with logits in memory at once; 0: 2048, fewer for more than 65k logits', at_least=0
    )
    gather_head_once: bool = field(
        True, 'whether a split head is gathered once for all slices of the loss: faster, 10 bytes more for each number'
    )
    ema_decay: float = field(0.0, 'decay of the averaged parameters; 0 keeps none', at_least=0, below=1)
    compile_cache: str = field('.cache/xla', 'where compiled programs are kept between runs; empty keeps none')
    compiler_options: dict = field(
        {}, 'option of XLA -> value, over the defaults of train/compiler.py; None leaves an option out'
    )
    watch_preemption: bool = field(
        True, "whether to save and stop when Google's cloud says that it will stop the machine"
    )


@dataclasses.dataclass(frozen=True)
class Optimizer:
    name: Part = field(
        'adamw', 'adamw, lion, adafactor, sgd, muon, or a callable', parts='llm_jax.train.optimizers:RULES'
    )
    learning_rate: float = field(
        3e-4, 'peak learning rate; of all parameters, but for what model.mup makes of it', at_least=0
    )
    b1: float = field(
        0.9, '"adamw", "lion", "muon" (embeddings, vectors): decay of the first moment', at_least=0, below=1
    )
    b2: float = field(
        0.95, 'decay of the second moment; "adafactor": its largest, "lion": of the only moment', at_least=0, below=1
    )
    eps: float = field(1e-8, '"adamw", "muon" (embeddings, vectors): added to the root of the second moment')
    momentum: float = field(0.95, '"sgd", "muon" (matrices): decay of the sum of gradients', at_least=0, below=1)
    nesterov: bool = field(True, '"sgd", "muon": whether the step looks ahead of that sum')
    weight_decay: float = field(
        0.1, 'decoupled: multiplied by the learning rate only, also under model.mup', at_least=0
    )
    decay_mask: tuple = field(
        (),
        '(regex, decays) pairs, of which the first that matches a whole parameter path decides; '
        'empty decays what has inputs: matrices and embeddings, no vectors',
    )
    clip: float = field(1.0, 'largest global gradient norm; 0 never clips', at_least=0)
    mu_dtype: Dtype = field('float32', 'dtype of the first moment or momentum; second moments are always float32')
    options: Options = field(Options(), 'keyword arguments of the update rule, for one of your own')
    offload: bool = field(False, "whether the optimizer's state lies in the host's memory between updates")


@dataclasses.dataclass(frozen=True)
class Schedule:
    name: Part = field(
        'cosine',
        'constant, linear, cosine, wsd, inverse_sqrt, or a callable',
        parts='llm_jax.train.optimizer:SCHEDULES',
    )
    warmup: Duration = field('2 %', 'linear rise from 0 to the peak')
    decay: Duration = field('20 %', 'the final fall of "wsd"')
    final_lr_ratio: float = field(0.1, 'final learning rate as a fraction of the peak', at_least=0)
    options: Options = field(Options(), 'keyword arguments of the shape, for one of your own')


DEFAULT_RULES = {
    # Weights.
    'vocab': 'tensor',
    'position': None,
    'd_model': 'fsdp',
    'heads': 'tensor',
    'kv_heads': 'tensor',
    'd_head': None,
    'd_ff': 'tensor',
    'latent': None,
    'rank': 'fsdp',  # the side of a latent of the maps from it to heads
    'experts': 'expert',
    'scores': None,  # what a router says, one for each expert
    'layers': 'stage',
    # Activations.
    'batch': ('stage', 'data', 'fsdp', 'expert'),
    'length': 'context',
    'residual': None,
    # Of the residual stream between the products; ('context', 'tensor') divides it by tensor too.
    'residual_length': 'context',
}


@dataclasses.dataclass(frozen=True)
class Mesh:
    data: int = field(1, 'devices that hold whole copies; -1 means the rest')
    fsdp: int = field(-1, 'devices the batch and the parameters are split over')
    tensor: int = field(1, 'devices that heads, d_ff and vocabulary are split over')
    context: int = field(1, 'devices that the tokens of a row are split over')
    expert: int = field(1, 'devices that experts are split over; elsewhere they split the batch')
    stage: int = field(1, 'devices that the layers are split over: the stages of a pipeline')
    pipeline_microbatches: int = field(
        0, 'pieces that run through the stages; a multiple of their number, which is 0', at_least=0
    )
    pipeline_repeats: int = field(1, 'groups of layers on each stage: so many times smaller is the bubble', at_least=1)
    rules: dict = field(DEFAULT_RULES, 'logical axis -> mesh axis, tuple of them, or None')
    distributed: bool = field(False, 'whether to start jax.distributed (several hosts)')
    start_timeout: int = field(300, 'seconds that a host waits for the others when a job starts', at_least=1)
    heartbeat_timeout: int = field(40, 'seconds without a sign of life after which a host counts as lost', at_least=1)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    every: Duration = field('10 %', 'between checkpoints')
    keep: int = field(2, 'how many of the newest to keep', at_least=1)
    keep_best: bool = field(True, 'also keep the best by validation loss')


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment, complete and validated."""

    name: str = field('', "the run directory is runs/<name>; empty takes the file's name")
    seed: int = field(0, 'seed of the initial weights, data order, dropout and samples', at_least=0, below=2**63)
    init_from: str = field(
        '', 'run directory or Hugging Face model (hf:OWNER/NAME, hf:DIR) whose parameters this run starts from'
    )
    model: Model = section(Model, 'the Transformer and its parts')
    data: Data = section(Data, 'text, tokenizer and rows')
    chat: Chat = section(Chat, 'conversations')
    train: Train = section(Train, 'how long, how much, how often')
    optimizer: Optimizer = section(Optimizer, 'how gradients become updates')
    schedule: Schedule = section(Schedule, 'the learning rate over time')
    mesh: Mesh = section(Mesh, 'how the devices are arranged')
    checkpoint: Checkpoint = section(Checkpoint, 'when state is saved, and what is kept')
