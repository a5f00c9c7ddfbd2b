"""The kernels that read volumes at the positions that `place` finds, and their adjoints.

Of their constants, `indexed`, `moved` and `mapped` say what a position is made of: the voxel's index, the displacement,
and the matrix that both are put through; `border` says whether values go on beyond the image. sizes are those of the
image that is read; o1, o2 and voxels are of the grid that positions belong to. A step leads from one sample to the
next; it is 0 where one serves all."""

from __future__ import annotations

import triton
import triton.language as tl

from stepwarp.kernels.gpu.cells import cell, channel, entry, index, trilinear, trilinear_with_slope


@triton.jit
def place(x, u, matrix, o1, o2, voxels, indexed: tl.constexpr, moved: tl.constexpr, mapped: tl.constexpr):
    """The position that voxel x of the grid reads at."""
    i, j, k = index(x, o1, o2)
    on_grid = x < voxels
    p0, p1, p2 = i.to(tl.float32), j.to(tl.float32), k.to(tl.float32)
    if moved:
        u0 = tl.load(u + x, on_grid, 0.0)
        u1 = tl.load(channel(u, 1, voxels) + x, on_grid, 0.0)
        u2 = tl.load(channel(u, 2, voxels) + x, on_grid, 0.0)
        if indexed:
            p0, p1, p2 = p0 + u0, p1 + u1, p2 + u2
        else:
            p0, p1, p2 = u0, u1, u2
    if mapped:
        q0 = entry(matrix, 0, 0) * p0 + entry(matrix, 0, 1) * p1 + entry(matrix, 0, 2) * p2 + entry(matrix, 0, 3)
        q1 = entry(matrix, 1, 0) * p0 + entry(matrix, 1, 1) * p1 + entry(matrix, 1, 2) * p2 + entry(matrix, 1, 3)
        q2 = entry(matrix, 2, 0) * p0 + entry(matrix, 2, 1) * p1 + entry(matrix, 2, 2) * p2 + entry(matrix, 2, 3)
        p0, p1, p2 = q0, q1, q2
    return p0, p1, p2


@triton.jit
def inside(p0, p1, p2, n0, n1, n2):
    """An image ends half a voxel beyond its outermost centres."""
    low = (p0 >= -0.5) & (p1 >= -0.5) & (p2 >= -0.5)
    return low & (p0 < n0 - 0.5) & (p1 < n1 - 0.5) & (p2 < n2 - 0.5)


@triton.jit
def read_values(
    image, u, matrix, out, n0, n1, n2, o1, o2, voxels, image_step, u_step, matrix_step, out_step,
    channels: tl.constexpr, indexed: tl.constexpr, moved: tl.constexpr, mapped: tl.constexpr, border: tl.constexpr,
    block: tl.constexpr,
):  # fmt: skip
    """out_c(x) = image_c(position of x)."""
    x = tl.program_id(0) * block + tl.arange(0, block)
    sample = tl.program_id(1).to(tl.int64)
    image, u, matrix = image + sample * image_step, u + sample * u_step, matrix + sample * matrix_step
    out += sample * out_step
    on_grid = x < voxels
    p0, p1, p2 = place(x, u, matrix, o1, o2, voxels, indexed, moved, mapped)
    wanted = on_grid
    if not border:
        wanted = on_grid & inside(p0, p1, p2, n0, n1, n2)
    q0, t0 = cell(p0, n0)
    q1, t1 = cell(p1, n1)
    q2, t2 = cell(p2, n2)
    corner = (q0 * n1 + q1) * n2 + q2
    for c in tl.static_range(channels):
        value = trilinear(channel(image, c, n0 * n1 * n2), corner, n0, n1, n2, t0, t1, t2, wanted)
        tl.store(channel(out, c, voxels) + x, tl.where(wanted, value, 0.0), on_grid)


@triton.jit
def read_vectors(
    outer, inner, matrix, turn, out, n0, n1, n2, o1, o2, voxels, outer_step, inner_step, out_step,
    moved: tl.constexpr, mapped: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """out(x) = u(x) + turn outer(position of x), u: the inner displacement where `moved`; turn where `mapped`: vectors
    of the outer grid -> vectors of this one."""
    x = tl.program_id(0) * block + tl.arange(0, block)
    sample = tl.program_id(1).to(tl.int64)
    outer, inner, out = outer + sample * outer_step, inner + sample * inner_step, out + sample * out_step
    on_grid = x < voxels
    size = n0 * n1 * n2
    p0, p1, p2 = place(x, inner, matrix, o1, o2, voxels, True, moved, mapped)
    q0, t0 = cell(p0, n0)
    q1, t1 = cell(p1, n1)
    q2, t2 = cell(p2, n2)
    corner = (q0 * n1 + q1) * n2 + q2
    v0 = trilinear(outer, corner, n0, n1, n2, t0, t1, t2, on_grid)
    v1 = trilinear(channel(outer, 1, size), corner, n0, n1, n2, t0, t1, t2, on_grid)
    v2 = trilinear(channel(outer, 2, size), corner, n0, n1, n2, t0, t1, t2, on_grid)
    if mapped:
        w0 = entry(turn, 0, 0) * v0 + entry(turn, 0, 1) * v1 + entry(turn, 0, 2) * v2
        w1 = entry(turn, 1, 0) * v0 + entry(turn, 1, 1) * v1 + entry(turn, 1, 2) * v2
        w2 = entry(turn, 2, 0) * v0 + entry(turn, 2, 1) * v1 + entry(turn, 2, 2) * v2
        v0, v1, v2 = w0, w1, w2
    if moved:
        v0 += tl.load(inner + x, on_grid, 0.0)
        v1 += tl.load(channel(inner, 1, voxels) + x, on_grid, 0.0)
        v2 += tl.load(channel(inner, 2, voxels) + x, on_grid, 0.0)
    tl.store(out + x, v0, on_grid)
    tl.store(channel(out, 1, voxels) + x, v1, on_grid)
    tl.store(channel(out, 2, voxels) + x, v2, on_grid)


@triton.jit
def read_slopes(
    image, u, matrix, gradient, out, n0, n1, n2, o1, o2, voxels, image_step, u_step, gradient_step, out_step,
    channels: tl.constexpr, indexed: tl.constexpr, moved: tl.constexpr, mapped: tl.constexpr, border: tl.constexpr,
    block: tl.constexpr,
):  # fmt: skip
    """out(x) = matrix^T sum_c gradient_c(x) slope_c(position of x): what the displacement receives."""
    x = tl.program_id(0) * block + tl.arange(0, block)
    sample = tl.program_id(1).to(tl.int64)
    image, u, out = image + sample * image_step, u + sample * u_step, out + sample * out_step
    gradient += sample * gradient_step
    on_grid = x < voxels
    p0, p1, p2 = place(x, u, matrix, o1, o2, voxels, indexed, moved, mapped)
    wanted = on_grid
    if not border:
        wanted = on_grid & inside(p0, p1, p2, n0, n1, n2)
    q0, t0 = cell(p0, n0)
    q1, t1 = cell(p1, n1)
    q2, t2 = cell(p2, n2)
    corner = (q0 * n1 + q1) * n2 + q2
    e0, e1, e2 = tl.zeros((block,), tl.float32), tl.zeros((block,), tl.float32), tl.zeros((block,), tl.float32)
    for c in tl.static_range(channels):
        received = tl.load(channel(gradient, c, voxels) + x, wanted, 0.0)
        values = channel(image, c, n0 * n1 * n2)
        _, s0, s1, s2 = trilinear_with_slope(values, corner, n0, n1, n2, t0, t1, t2, wanted)
        e0 += received * s0
        e1 += received * s1
        e2 += received * s2
    # Along an axis where the border's value is repeated there is no slope.
    e0 = tl.where((p0 > 0.0) & (p0 < n0 - 1.0), e0, 0.0)
    e1 = tl.where((p1 > 0.0) & (p1 < n1 - 1.0), e1, 0.0)
    e2 = tl.where((p2 > 0.0) & (p2 < n2 - 1.0), e2, 0.0)
    if mapped:
        f0 = entry(matrix, 0, 0) * e0 + entry(matrix, 1, 0) * e1 + entry(matrix, 2, 0) * e2
        f1 = entry(matrix, 0, 1) * e0 + entry(matrix, 1, 1) * e1 + entry(matrix, 2, 1) * e2
        f2 = entry(matrix, 0, 2) * e0 + entry(matrix, 1, 2) * e1 + entry(matrix, 2, 2) * e2
        e0, e1, e2 = f0, f1, f2
    tl.store(out + x, e0, on_grid)
    tl.store(channel(out, 1, voxels) + x, e1, on_grid)
    tl.store(channel(out, 2, voxels) + x, e2, on_grid)


@triton.jit
def add_back(
    u, matrix, gradient, out, n0, n1, n2, o1, o2, voxels, image_step, u_step, gradient_step,
    channels: tl.constexpr, indexed: tl.constexpr, moved: tl.constexpr, mapped: tl.constexpr, border: tl.constexpr,
    block: tl.constexpr,
):  # fmt: skip
    """The adjoint of reading: the gradient spread over the voxels that were read, added to what is there."""
    x = tl.program_id(0) * block + tl.arange(0, block)
    sample = tl.program_id(1).to(tl.int64)
    u, out, gradient = u + sample * u_step, out + sample * image_step, gradient + sample * gradient_step
    wanted = x < voxels
    p0, p1, p2 = place(x, u, matrix, o1, o2, voxels, indexed, moved, mapped)
    if not border:
        wanted = wanted & inside(p0, p1, p2, n0, n1, n2)
    q0, t0 = cell(p0, n0)
    q1, t1 = cell(p1, n1)
    q2, t2 = cell(p2, n2)
    corner = (q0 * n1 + q1) * n2 + q2
    up, along = tl.minimum(n1 - 1, 1) * n2, tl.minimum(n2 - 1, 1)
    far = corner + tl.minimum(n0 - 1, 1) * (n1 * n2)
    for c in tl.static_range(channels):
        received = tl.load(channel(gradient, c, voxels) + x, wanted, 0.0)
        flat = channel(out, c, n0 * n1 * n2)
        g1 = received * t0
        g0 = received - g1
        g01, g11 = g0 * t1, g1 * t1
        g00, g10 = g0 - g01, g1 - g11
        tl.atomic_add(flat + corner, g00 - g00 * t2, wanted, sem="relaxed")
        tl.atomic_add(flat + (corner + along), g00 * t2, wanted, sem="relaxed")
        tl.atomic_add(flat + (corner + up), g01 - g01 * t2, wanted, sem="relaxed")
        tl.atomic_add(flat + (corner + up + along), g01 * t2, wanted, sem="relaxed")
        tl.atomic_add(flat + far, g10 - g10 * t2, wanted, sem="relaxed")
        tl.atomic_add(flat + (far + along), g10 * t2, wanted, sem="relaxed")
        tl.atomic_add(flat + (far + up), g11 - g11 * t2, wanted, sem="relaxed")
        tl.atomic_add(flat + (far + up + along), g11 * t2, wanted, sem="relaxed")


@triton.jit
def sum_for_matrix(image, matrix, gradient, out, n0, n1, n2, o1, o2, voxels, border: tl.constexpr, block: tl.constexpr):
    """For each program, the sum over its voxels x of gradient(x) slope(matrix (x, 1)) (x, 1)^T: (matrices, programs, 3,
    4)."""
    x = tl.program_id(0) * block + tl.arange(0, block)
    sample = tl.program_id(1).to(tl.int64)
    matrix, gradient = matrix + sample * 16, channel(gradient, sample, voxels)
    i, j, k = index(x, o1, o2)
    f0, f1, f2 = i.to(tl.float32), j.to(tl.float32), k.to(tl.float32)
    p0, p1, p2 = place(x, image, matrix, o1, o2, voxels, True, False, True)
    wanted = x < voxels
    if not border:
        wanted = wanted & inside(p0, p1, p2, n0, n1, n2)
    q0, t0 = cell(p0, n0)
    q1, t1 = cell(p1, n1)
    q2, t2 = cell(p2, n2)
    corner = (q0 * n1 + q1) * n2 + q2
    _, s0, s1, s2 = trilinear_with_slope(image, corner, n0, n1, n2, t0, t1, t2, wanted)
    # Along an axis where the border's value is repeated there is no slope.
    s0 = tl.where((p0 > 0.0) & (p0 < n0 - 1.0), s0, 0.0)
    s1 = tl.where((p1 > 0.0) & (p1 < n1 - 1.0), s1, 0.0)
    s2 = tl.where((p2 > 0.0) & (p2 < n2 - 1.0), s2, 0.0)
    received = tl.load(gradient + x, wanted, 0.0)
    out += (sample * tl.num_programs(0) + tl.program_id(0)) * 12
    for a in tl.static_range(3):
        slope = received * (s0 if a == 0 else (s1 if a == 1 else s2))
        tl.store(out + 4 * a, tl.sum(slope * f0))
        tl.store(out + (4 * a + 1), tl.sum(slope * f1))
        tl.store(out + (4 * a + 2), tl.sum(slope * f2))
        tl.store(out + (4 * a + 3), tl.sum(slope))


@triton.jit
def read_at_step(
    displacement, step, scale, out, longest, n0, n1, n2, voxels, displacement_step, step_step, out_step,
    stored: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """out(x) = s(x) + u(x + s(x)) with s = scale step, shortened where longer than `longest`. stored: the scale is in
    memory."""
    x = tl.program_id(0) * block + tl.arange(0, block)
    sample = tl.program_id(1).to(tl.int64)
    u, step, out = displacement + sample * displacement_step, step + sample * step_step, out + sample * out_step
    on_grid = x < voxels
    by = scale
    if stored:
        by = tl.load(scale).to(tl.float32)
    s0 = by * tl.load(step + x, on_grid, 0.0)
    s1 = by * tl.load(channel(step, 1, voxels) + x, on_grid, 0.0)
    s2 = by * tl.load(channel(step, 2, voxels) + x, on_grid, 0.0)
    shorten = tl.minimum(longest / tl.sqrt(s0 * s0 + s1 * s1 + s2 * s2 + 1e-12), 1.0)
    s0, s1, s2 = s0 * shorten, s1 * shorten, s2 * shorten
    i, j, k = index(x, n1, n2)
    q0, t0 = cell(i.to(tl.float32) + s0, n0)
    q1, t1 = cell(j.to(tl.float32) + s1, n1)
    q2, t2 = cell(k.to(tl.float32) + s2, n2)
    corner = (q0 * n1 + q1) * n2 + q2
    for c in tl.static_range(3):
        value = trilinear(channel(u, c, voxels), corner, n0, n1, n2, t0, t1, t2, on_grid)
        tl.store(channel(out, c, voxels) + x, value + (s0 if c == 0 else (s1 if c == 1 else s2)), on_grid)
