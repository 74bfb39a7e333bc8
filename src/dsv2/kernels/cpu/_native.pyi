"""Types of the compiled module; csrc/module.cpp is its source."""

class Matrix:
    bytes: int
    rows: int
    cols: int

class AttentionLayer:
    bytes: int
    latent: int
    rope: int

class MlpLayer:
    bytes: int

class MoeLayer:
    bytes: int

class Stack:
    def __init__(self) -> None: ...
    def add(self, attention: AttentionLayer, feed: MlpLayer | MoeLayer, /) -> None: ...

class Batch:
    def __init__(
        self, tokens: int, sequences: int, table_width: int, cu_q: int, kv_len: int,
        block_table: int, slots: int, absorbed: int, cos: int, sin: int, /,
    ) -> None: ...  # fmt: skip

def supported() -> list[str]: ...
def attention_layer(
    *, hidden: int, heads: int, nope: int, rope: int, value: int, latent: int, scale: float,
    eps: float, latent_eps: float, norm: int, q_norm: int, kv_norm: int, wq: Matrix | None,
    wq_a: Matrix | None, wq_b: Matrix | None, wkv_a: Matrix, wo: Matrix, w_uk: Matrix,
    w_uk_t: Matrix, w_uv: Matrix, fold: int,
) -> AttentionLayer: ...  # fmt: skip
def mlp_layer(
    *, hidden: int, width: int, eps: float, norm: int, gate: Matrix, up: Matrix, down: Matrix
) -> MlpLayer: ...
def moe_layer(
    *, hidden: int, width: int, shared_width: int, eps: float, experts: int, chosen: int,
    groups: int, chosen_groups: int, score: int, group_score: int, normalise: bool, scale: float,
    norm: int, bias: int, router: Matrix, gate: Matrix, up: Matrix, down: Matrix,
    shared_gate: Matrix | None, shared_up: Matrix | None, shared_down: Matrix | None,
) -> MoeLayer: ...  # fmt: skip

class Kernels:
    isa: str
    threads: int
    scratch_bytes: int
    def __init__(self, isa: str, threads: int) -> None: ...
    def pack(
        self, *, format: int, source_format: int, count: int, rows: int, cols: int, data: int,
        scales: int, row_scales: int, item_stride: int, row_stride: int, col_stride: int,
        item_rows: int,
    ) -> Matrix: ...  # fmt: skip
    def use(
        self, *, format: int, count: int, rows: int, cols: int, codes: int, scales: int,
        row_scales: int, owner: object,
    ) -> Matrix: ...  # fmt: skip
    def attention(
        self, layer: AttentionLayer, batch: Batch, format: int, token_bytes: int, cache: int,
        x: int, /,
    ) -> None: ...  # fmt: skip
    def mlp(self, layer: MlpLayer, tokens: int, x: int, /) -> None: ...
    def moe(self, layer: MoeLayer, tokens: int, x: int, /) -> None: ...
    def run(
        self, stack: Stack, batch: Batch, format: int, token_bytes: int, caches: list[int],
        x: int, /,
    ) -> None: ...  # fmt: skip
    def linear(
        self, weights: Matrix, norm: int, eps: float, tokens: int, x: int, out: int, /
    ) -> None: ...
    def gather(self, weights: Matrix, count: int, ids: int, out: int, /) -> None: ...
    def quantise(
        self, format: int, rows: int, cols: int, source: int, data: int, codes: int, scales: int,
        row_scales: int, errors: int, /,
    ) -> None: ...  # fmt: skip
    def probe_read(self, bytes: int, /) -> float: ...
    def probe_multiply(self, format: int, rounds: int, /) -> float: ...
