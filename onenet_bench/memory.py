"""Memory peaks by liveness over the plan, for the execution that ``onenet_bench.models`` really does.

A tensor lives from the row that makes it to the last row that reads it; in training also until the backward pass has
used what a row saved of it. What is counted is what torch's own tracker sees: tensors, not the scratch space that a
convolution library takes for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from onenet_bench.plan import BAND, READ, Plan, Row, band_width, is_banded

BYTES = 4
"""Bytes of a float32 number."""

CHUNK = 1 << 17
"""Elements that a batch norm in training works on at a time: half a mebibyte, which fits into a core's cache."""

ROWS = 1024
"""The least rows of a 1x1 convolution's backward pass at a time."""

HEAVY = 1 << 20
"""From so many weights on a convolution may be heavy: 4 MiB, more than a core's cache."""

IN_PLACE = frozenset({"relu", "add"})
"""Rows that write their output over their first input; in inference norms do, too."""


def is_channel_conv(row: Row) -> bool:
    """Whether a row is a 1x1 convolution that is a matrix product of all positions."""
    return row.op == "conv" and row.kernel == row.stride == row.groups == 1


def is_heavy(row: Row) -> bool:
    """Whether a row is a convolution whose weights are laid out for small images: (C', C, k, k) contiguous."""
    return row.op == "conv" and row.kernel > 1 and row.groups == 1 and _weights(row) >= HEAVY


def is_narrow(row: Row) -> bool:
    """Whether a row is a strided 1x1 convolution of so few channels that torch's library (oneDNN 3.12, AVX2) writes
    beyond the gradient of its channels-last weights, and breaks the heap."""
    return row.op == "conv" and row.kernel == 1 and row.stride > 1 and row.c_in < 8


def is_heavier(row: Row, batch: int) -> bool:
    """Whether a convolution is trained on contiguous copies: a heavy one that reads fewer elements than it has
    weights, or a narrow one."""
    return is_narrow(row) or (is_heavy(row) and batch * _elements_in(row) < _weights(row))


def taken_in(rows: Sequence[Row], indices: Iterable[int]) -> tuple[dict[int, list[int]], set[int]]:
    """Of the rows ``indices``, which are executed: the readers of each, and those that a neighbour does.

    A ReLU is done by the 1x1 or spatial convolution or the norm before it; a norm by the 1x1 convolutions behind it;
    so is, in inference, a pixel-unshuffle.
    """
    executed = list(indices)
    readers: dict[int, list[int]] = {index: [] for index in (-1, *executed)}
    for index in executed:
        for source in rows[index].inputs:
            readers[source].append(index)
    taken = set()
    for index in executed:
        row, source = rows[index], rows[index].inputs[0]
        if row.op == "relu":
            does = rows[source].op in ("spatial", "norm") or is_channel_conv(rows[source])
            if does and readers[source] == [index]:
                taken.add(index)
        elif row.op in ("norm", "unshuffle") and all(is_channel_conv(rows[reader]) for reader in readers[index]):
            taken.add(index)
    return readers, taken


def peak_elements(lowered: Plan) -> int:
    """The largest number of elements that live at one moment of an inference, the image included, weights not."""
    return max(live_elements(lowered))


def live_elements(lowered: Plan) -> list[int]:
    """Elements alive while each row runs, the image included, weights not; 0 for a row that never runs.

    A tensor lives from the row that makes it to the last row that reads it, which is the first one met going back.
    This is the execution of ``onenet_bench.models`` on a CPU: rows in their order, ReLUs, norms and sums in place.
    A deployed plan's is that of stock layers, which read the image as it is.
    """
    rows = lowered.rows
    c, h, w = lowered.shape
    scratch = DEPLOYED_SCRATCH if lowered.deployed else SCRATCH
    wanted = {lowered.output}  # whose outputs are read later, the logits by the caller
    if c == 1 or lowered.deployed:
        wanted.add(-1)  # an image of one channel is channels-last as it is, and needs no copy
    live = c * h * w + rows[lowered.output].elements  # the caller keeps its image
    needed = []
    for index in range(len(rows) - 1, -1, -1):
        row = rows[index]
        if not row.runs:
            needed.append(0)
            continue
        op, inputs = row.op, row.inputs
        first = rows[inputs[0]] if inputs[0] >= 0 else None
        if op == "unshuffle" and index not in wanted:  # the 1x1 convolution behind it does it
            needed.append(0)
            continue
        if first and first.op == "unshuffle" and is_channel_conv(row):
            inputs = first.inputs
        in_place = (op in IN_PLACE or op == "norm") and inputs[0] >= 0
        if in_place:
            wanted.add(inputs[0])  # whose memory is the output's, which lives already
        for source in inputs:
            if source not in wanted:
                wanted.add(source)
                made = rows[source]
                live += made.c_out * made.h_out * made.w_out if source >= 0 else c * h * w
        if first and first.op == "norm" and is_channel_conv(row):
            needed.append(live + _folding(row))
        else:
            needed.append(live + scratch[op](row) if op in scratch else live)
        if not in_place:
            live -= row.c_out * row.h_out * row.w_out
    needed.reverse()
    return needed


def _folding(row: Row) -> int:
    """Elements that a 1x1 convolution needs in inference to do the batch norm before it: scaled weights, or, where it
    has fewer positions than weights' rows, the norm's scale and shift while there is no output yet."""
    if row.h_out * row.w_out < row.c_out:
        return max(0, 3 * row.c_in - row.elements)
    return row.c_out * row.c_in + 3 * row.c_in + row.c_out


def _padded(row: Row) -> int:
    """Elements of the padded copy of a spatial convolution's input."""
    return row.elements + row.kernel - 1


SCRATCH: dict[str, Callable[[Row], int]] = {
    "conv": lambda row: 0 if is_narrow(row) else max(_copied_in(row, 1), _copied_out(row, 1)),
    "norm": lambda row: 3 * row.c_out,  # 1 / σ, scale and shift
    "maxpool": lambda row: 2 * row.elements,  # where each maximum stood, as int64
    "spatial": lambda row: (
        BAND * READ * band_width(row.kernel) + BAND  # the banded filter, and its bias
        if is_banded(row.kernel, row.elements)
        else _padded(row)
    ),
}
"""Elements that a row needs beside its input and output while it runs, where it does."""

DEPLOYED_SCRATCH: dict[str, Callable[[Row], int]] = {
    "maxpool": SCRATCH["maxpool"],
    "spatial": _padded,  # beside it stands the flattened input, and then the output
    "edges": lambda row: 0 if row.stride == 1 else _unshuffled(row),
    "beyond": lambda row: row.elements,  # its two halves
}
"""The same in a deployed plan."""


def _unshuffled(row: Row) -> int:
    """Elements of the whole channels whose pixel-unshuffle holds a spatial convolution's edges."""
    edge = row.c_out // (2 * row.groups)  # channels at either end of a block
    return 2 * row.groups * -(-edge // row.stride**2) * row.stride**2 * row.h_out * row.w_out


class _Heap:
    """Live bytes, and the most there ever were. A storage is freed when nobody holds it any more."""

    __slots__ = ("_holders", "_sizes", "live", "peak")

    def __init__(self, live: int) -> None:
        self.live = self.peak = live
        self._sizes: list[int] = []
        self._holders: list[int] = []

    def new(self, size: int) -> int:
        """A storage with one holder."""
        self._sizes.append(size)
        self._holders.append(1)
        self.live += size
        if self.live > self.peak:
            self.peak = self.live
        return len(self._sizes) - 1

    def need(self, size: int) -> None:
        """A storage that is dropped at once."""
        if self.live + size > self.peak:
            self.peak = self.live + size

    def hold(self, key: int) -> int:
        self._holders[key] += 1
        return key

    def drop(self, key: int) -> None:
        self._holders[key] -= 1
        if not self._holders[key]:
            self.live -= self._sizes[key]

    def shared(self, key: int) -> bool:
        return self._holders[key] > 1


def training_peak_bytes(
    lowered: Plan, batch: int, precision: str = "float32", deep_supervision: bool = False
) -> int:  # fmt: skip
    """The most bytes alive in a training step with AdamW that is not the first, for ``batch`` images.

    Parameters, buffers, gradients, the optimiser's two moments, images and masks, what the forward pass saves and
    what the backward pass makes. ``precision`` is float32 or bf16 (autocast: activations of two bytes, and a copy of
    the weights). With ``deep_supervision`` all heads run, each with a loss and a target of its size.
    """
    rows = lowered.rows
    narrow = 2 if precision == "bf16" else BYTES
    c, h, w = lowered.shape
    heads = lowered.heads if deep_supervision else (lowered.output,)
    runs = {index for index, row in enumerate(rows) if row.runs or index in heads}
    used = [row for index, row in enumerate(rows) if index in runs and row.parameters]
    tensors = sum(1 + (row.bias or row.op == "norm") for row in used)
    buffers = sum(_buffers(row) for row in rows)
    weights = sum(row.parameters for row in rows)
    scalars = 2 * BYTES  # the loss and the weight it is divided by
    moments = 2 * BYTES * sum(row.parameters for row in used) + BYTES * tensors
    images = BYTES * batch * c * h * w + 8 * batch * sum(rows[head].h_out * rows[head].w_out for head in heads)
    heap = _Heap(BYTES * weights + buffers + moments + images + scalars)

    readers, taken = taken_in(rows, sorted(runs))
    storage: dict[int, int] = {}  # of every row's output, while the executor holds it
    wide: set[int] = set()  # rows whose output is float32 whatever the precision
    saved: dict[int, list[int]] = {}  # what the backward pass of a row holds
    learns: set[int] = set()  # rows whose output has a gradient
    elements = [row.elements for row in rows]
    does_relu = {rows[index].inputs[0] for index in taken if rows[index].op == "relu"}  # the one behind them

    def size(index: int) -> int:
        return batch * elements[index] * (BYTES if index in wide else narrow)

    def statistics(index: int) -> int:
        """Mean and 1 / σ, kept for the backward pass, of the input of a norm."""
        row = rows[index]
        chunk = _chunk(batch * row.h_out * row.w_out, row.c_out)
        heap.need((BYTES if narrow == BYTES else 2 * BYTES) * chunk)
        return heap.new(2 * BYTES * row.c_out)

    storage[-1] = heap.new(BYTES * batch * c * h * w if c > 1 else 0)  # in channels-last memory
    wide.add(-1)
    for index, row in enumerate(rows):
        if index not in runs:
            continue
        source = row.inputs[0]
        kept: list[int] = []
        if is_channel_conv(row):
            scaled = source in taken and rows[source].op == "norm"
            if scaled:
                kept.append(statistics(source))
            casted = narrow < BYTES and source in wide
            rows_read = heap.new(narrow * batch * _elements_in(row)) if casted else heap.hold(storage[source])
            kept.append(rows_read)
            folded = heap.new(BYTES * row.parameters) if scaled else None
            storage[index] = heap.new(size(index))
            if folded is not None:
                heap.drop(folded)
            learns.add(index)
            if index in does_relu:
                kept.append(heap.hold(storage[index]))
        elif row.op in ("relu", "norm") and index in taken:
            storage[index] = heap.hold(storage[source])
        elif row.op in ("conv", "up"):
            if narrow < BYTES:  # autocast's copies of the weights live as long as the graph does
                kept.append(heap.new(narrow * row.parameters))
                if source in wide:
                    kept.append(heap.new(narrow * batch * _elements_in(row)))
            if source not in wide or narrow == BYTES:
                kept.append(heap.hold(storage[source]))
            storage[index] = heap.new(size(index))
            if narrow == BYTES:
                heap.need(BYTES * _copied_in(row, batch))
                heap.need(BYTES * _copied_out(row, batch))
            learns.add(index)
        elif row.op in IN_PLACE:
            storage[index] = heap.hold(storage[source])
            if row.op == "relu":
                kept.append(heap.hold(storage[index]))
        else:
            if row.op == "normalise" or (source in wide and source not in learns):
                wide.add(index)
            storage[index] = heap.new(size(index))
            if row.op == "norm":
                kept += [heap.hold(storage[source]), statistics(index)]
                if index in does_relu:
                    kept.append(heap.hold(storage[index]))
            elif row.op == "maxpool":
                kept += [heap.hold(storage[source]), heap.new(8 * batch * row.elements)]
            elif row.op == "spatial":
                kept += [heap.hold(storage[source]), heap.hold(storage[index])]
                if is_banded(row.kernel, row.elements):
                    heap.need(narrow * SCRATCH["spatial"](row))
                else:
                    kept.append(heap.new(narrow * batch * _padded(row)))
        if row.op != "conv" and row.op != "up" and not learns.isdisjoint(row.inputs):
            learns.add(index)
        if index in learns:
            saved[index] = kept
        else:
            for key in kept:
                heap.drop(key)
        for read in set(row.inputs):
            if readers[read][-1] == index:
                heap.drop(storage[read])

    # The losses. The training loop itself holds the logits, and float32 ones of narrow logits until they are used.
    log_softmax: dict[int, int] = {}
    for head in heads:
        as_float = heap.new(BYTES * batch * rows[head].elements) if narrow < BYTES else None
        log_softmax[head] = heap.new(BYTES * batch * rows[head].elements)
        if as_float is not None:
            heap.drop(as_float)
    pending: dict[int, tuple[int, bool]] = {}  # gradients of rows' outputs: (storage, is a view of more)
    for head in reversed(heads):
        to_log_softmax = heap.new(BYTES * batch * rows[head].elements)
        to_logits = heap.new(BYTES * batch * rows[head].elements)
        heap.drop(to_log_softmax)
        heap.drop(log_softmax[head])
        if narrow < BYTES:
            cast = heap.new(narrow * batch * rows[head].elements)
            heap.drop(to_logits)
            to_logits = cast
        pending[head] = (to_logits, False)

    # Backwards. What reaches a concatenation goes on as views of one storage.

    def give(index: int, key: int, view: bool) -> None:
        """A gradient for the output of row ``index``; the second one is added to the first, in place if it may be."""
        if index not in pending:
            pending[index] = (key, view)
            return
        first, first_is_view = pending[index]
        if first_is_view or heap.shared(first):
            pending[index] = (heap.new(size(index)), False)
            heap.drop(first)
        heap.drop(key)

    for index in range(len(rows) - 1, -1, -1):
        if index not in pending:
            continue
        row = rows[index]
        source = row.inputs[0]
        gradient, view = pending.pop(index)
        onward = None  # the gradient of what it reads, which is given on once nothing else is held
        if row.op == "concat":
            for read in row.inputs:
                give(read, heap.hold(gradient), True)
        elif row.op == "add":
            for read in row.inputs:
                give(read, heap.hold(gradient), view)
        elif index in taken and row.op != "unshuffle":
            give(source, heap.hold(gradient), view)
        elif is_channel_conv(row):
            scaled = source in taken and rows[source].op == "norm"
            folded = heap.new(narrow * row.c_in * row.c_out) if scaled or narrow < BYTES else None
            heap.new(BYTES * row.parameters)  # stays: the gradient of the weights
            onward = heap.new(size(source)) if source in learns else None
            chunk = _chunk(batch * row.h_out * row.w_out, row.c_out, ROWS) if index in does_relu else 0
            heap.need(narrow * chunk + BYTES * row.c_out)
            if scaled:
                heap.need(BYTES * (row.c_in * row.c_out + row.c_in))  # through the norm
            if folded is not None:
                heap.drop(folded)
            heap.new(2 * BYTES * row.c_in * scaled)  # stays: of the norm's
            source = rows[source].inputs[0] if scaled else source
        elif row.op == "spatial" and not is_banded(row.kernel, row.elements):
            # ReLU, convolution and padding, each of which drops what it has used
            flat, out, padded = saved[index]
            masked = heap.new(size(index))
            heap.drop(gradient)
            heap.drop(out)
            gradient = heap.new(narrow * batch * _padded(row))
            heap.new(BYTES * row.parameters)  # stays: the gradient of the weights
            heap.drop(masked)
            heap.drop(padded)
            onward = heap.new(size(source))
            saved[index] = [flat]
        else:
            if row.op == "spatial":
                masked = heap.new(size(index))  # through its ReLU
            onward = heap.new(size(source)) if source in learns else None
            if row.op == "norm":
                heap.need(BYTES * (_chunk(batch * row.h_out * row.w_out, row.c_out) + 5 * row.c_out))
            if row.op == "spatial":
                heap.need(narrow * _band_gradient(row.kernel, batch))
                heap.drop(masked)
                heap.new(BYTES * (row.kernel == 1))  # stays: the gradient of one tap is a view of two numbers
            if row.parameters:
                if narrow < BYTES and row.op != "norm":
                    heap.need((BYTES + narrow) * row.parameters)
                number = BYTES * (narrow == BYTES)  # of a contiguous copy's; autocast makes none
                copies = heap.new(number * (_copied_out(row, batch) + _copied_in(row, batch)))
                heap.new(BYTES * row.parameters)  # stays: the gradient of the weights
                heap.drop(copies)
                heap.need(number * _copied_in(row, batch) * (onward is not None))
        for key in saved[index]:
            heap.drop(key)
        heap.drop(gradient)
        if narrow == BYTES and is_heavier(row, batch) and row.h_in * row.w_in == 1:
            heap.need(BYTES * _weights(row))  # the gradient of its weights, made channels-last of one position
        if onward is not None:
            give(source, onward, False)
    return heap.peak


def _chunk(rows: int, channels: int, least: int = 1) -> int:
    """Elements that a batch norm or 1x1 convolution works on at a time, of (rows, channels)."""
    return channels * min(rows, max(least, CHUNK // channels))


def _band_gradient(kernel: int, batch: int) -> int:
    """Elements beside the masked gradient and the input's when a banded convolution's taps get theirs: the band's
    twice, as it is made and in the order of its taps, the taps and theirs, what mirrored inputs saw, or the bias's."""
    side = kernel // 2
    return 2 * BAND * BAND * 3 + 2 * kernel + 1 + max(1, batch * side * (6 + 3 * kernel))


def _buffers(row: Row) -> int:
    """Bytes of a row's buffers: running mean, variance and the count of batches; where taps
    stand in the banded filter, and in its gradient."""
    if row.op == "norm":
        return 2 * BYTES * row.c_out + 8
    return 8 * BAND * (BAND * 3 + READ * band_width(row.kernel)) if row.op == "spatial" else 0


def _elements_in(row: Row) -> int:
    return row.c_in * row.h_in * row.w_in


def _weights(row: Row) -> int:
    """Of a convolution, without its bias."""
    return row.c_out * row.c_in // row.groups * row.kernel**2


def _copied_in(row: Row, batch: int) -> int:
    """Elements of a contiguous copy of such a convolution's input; one position is contiguous as it is."""
    return batch * _elements_in(row) if is_heavier(row, batch) and row.h_in * row.w_in > 1 else 0


def _copied_out(row: Row, batch: int) -> int:
    """Elements of its output, or of its gradient, before they are channels-last or contiguous."""
    return batch * row.elements if is_heavier(row, batch) and row.h_out * row.w_out > 1 else 0
