//! InceptionV3 as the Fréchet inception distance uses it: the network of 2015-12-05 with its odd poolings, up to the
//! mean over places of its last block.
//!
//! Names are those of `pt_inception-2015-12-05-6726825d.pth`, the weights of pytorch-fid, kept as safetensors:
//!
//! ```text
//! python3 -c "import torch, safetensors.torch as s; w = torch.load('pt_inception-2015-12-05-6726825d.pth');
//! s.save_file({k: v.contiguous() for k, v in w.items()}, 'pt_inception-2015-12-05.safetensors')"
//! ```

use std::path::Path;

use nn::{Init, Scope, Weights};
use tch::{Device, Kind, Tensor};

use crate::{Error, Result};

/// The side of the pictures that the network looks at, in pixels.
pub const INCEPTION_SIDE: i64 = 299;
/// The width of the features.
pub const INCEPTION_FEATURES: i64 = 2048;

/// The network without its classifier.
#[derive(Debug)]
pub struct InceptionV3 {
    stem: [BasicConv; 5],
    /// 35 x 35.
    a: Vec<BlockA>,
    to_c: BlockB,
    /// 17 x 17.
    c: Vec<BlockC>,
    to_e: BlockD,
    /// 8 x 8.
    e: [BlockE; 2],
}

impl InceptionV3 {
    /// Takes the network from a scope.
    pub fn new(scope: &Scope) -> Self {
        let conv = |name, inputs, outputs, shape| BasicConv::new(&scope.sub(name), inputs, outputs, shape);
        let (three, one) = (Shape::square(3), Shape::square(1));
        Self {
            stem: [
                conv("Conv2d_1a_3x3", 3, 32, three.stride(2)),
                conv("Conv2d_2a_3x3", 32, 32, three),
                conv("Conv2d_2b_3x3", 32, 64, three.padding(1, 1)),
                conv("Conv2d_3b_1x1", 64, 80, one),
                conv("Conv2d_4a_3x3", 80, 192, three),
            ],
            a: [("Mixed_5b", 192, 32), ("Mixed_5c", 256, 64), ("Mixed_5d", 288, 64)]
                .map(|(name, inputs, pool)| BlockA::new(&scope.sub(name), inputs, pool))
                .into(),
            to_c: BlockB::new(&scope.sub("Mixed_6a"), 288),
            c: [("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)]
                .map(|(name, width)| BlockC::new(&scope.sub(name), 768, width))
                .into(),
            to_e: BlockD::new(&scope.sub("Mixed_7a"), 768),
            e: [
                BlockE::new(&scope.sub("Mixed_7b"), 1280, Pool::Mean),
                // Most likely a slip in the network that was published, which its users have to share.
                BlockE::new(&scope.sub("Mixed_7c"), 2048, Pool::Max),
            ],
        }
    }

    /// Loads a safetensors file of the published weights. The classifier and the counters in it are passed over.
    pub fn open(file: &Path, device: Device) -> Result<Self> {
        if file.extension().is_some_and(|extension| extension == "pth" || extension == "pt") {
            let reason = "is a pickle: save its tensors as safetensors under the same names".to_owned();
            return Err(Error::Document { path: file.to_owned(), reason });
        }
        let weights = Weights::open(file)?.rename(|name| is_used(name).then(|| name.to_owned()))?;
        Ok(weights.to(Kind::Float, device).build(Self::new)?.0)
    }

    /// The features `[B, 2048]` of pictures `[B, 3, 299, 299]` with values from 0 to 1.
    pub fn forward(&self, pictures: &Tensor) -> Tensor {
        let [first, second, third, fourth, fifth] = &self.stem;
        let mut x = third.forward(&second.forward(&first.forward(&(pictures * 2.0 - 1.0))));
        x = fifth.forward(&fourth.forward(&shrink(&x)));
        x = shrink(&x);
        x = self.a.iter().fold(x, |x, block| block.forward(&x));
        x = self.to_c.forward(&x);
        x = self.c.iter().fold(x, |x, block| block.forward(&x));
        x = self.to_e.forward(&x);
        x = self.e.iter().fold(x, |x, block| block.forward(&x));
        x.mean_dim([2i64, 3].as_slice(), false, Kind::Float)
    }
}

fn is_used(name: &str) -> bool {
    !name.starts_with("fc.") && !name.starts_with("AuxLogits.") && !name.ends_with(".num_batches_tracked")
}

/// The larger of nine, every other place.
fn shrink(x: &Tensor) -> Tensor {
    x.max_pool2d([3, 3], [2, 2], [0, 0], [1, 1], false)
}

/// What a block puts in place of a pixel and its eight neighbours.
#[derive(Clone, Copy, Debug)]
enum Pool {
    /// Their mean, over those that lie inside the map.
    Mean,
    /// Their maximum.
    Max,
}

impl Pool {
    fn forward(self, x: &Tensor) -> Tensor {
        match self {
            Self::Mean => x.avg_pool2d([3, 3], [1, 1], [1, 1], false, false, None),
            Self::Max => x.max_pool2d([3, 3], [1, 1], [1, 1], [1, 1], false),
        }
    }
}

/// The geometry of a convolution.
#[derive(Clone, Copy, Debug)]
struct Shape {
    kernel: [i64; 2],
    padding: [i64; 2],
    stride: i64,
}

impl Shape {
    const fn square(side: i64) -> Self {
        Self::rectangle(side, side)
    }

    const fn rectangle(height: i64, width: i64) -> Self {
        Self { kernel: [height, width], padding: [0, 0], stride: 1 }
    }

    /// The kernel with the padding that keeps the size.
    const fn kept(height: i64, width: i64) -> Self {
        Self::rectangle(height, width).padding(height / 2, width / 2)
    }

    const fn padding(self, height: i64, width: i64) -> Self {
        Self { padding: [height, width], ..self }
    }

    const fn stride(self, stride: i64) -> Self {
        Self { stride, ..self }
    }
}

/// A convolution without bias, a batch normalisation with the statistics of its training, and a ReLU.
#[derive(Debug)]
struct BasicConv {
    weight: Tensor,
    shape: Shape,
    norm: [Tensor; 4],
}

impl BasicConv {
    fn new(scope: &Scope, inputs: i64, outputs: i64, shape: Shape) -> Self {
        let [height, width] = shape.kernel;
        let norm = scope.sub("bn");
        Self {
            weight: scope.sub("conv").tensor(
                "weight",
                &[outputs, inputs, height, width],
                Init::fan_in(inputs * height * width),
            ),
            shape,
            norm: [
                ("weight", Init::Ones),
                ("bias", Init::Zeros),
                ("running_mean", Init::Zeros),
                ("running_var", Init::Ones),
            ]
            .map(|(name, init)| norm.tensor(name, &[outputs], init)),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        const MOMENTUM: f64 = 0.1;
        const EPS: f64 = 1e-3;
        let Shape { padding, stride, .. } = self.shape;
        let [weight, bias, mean, variance] = &self.norm;
        let x = x.conv2d(&self.weight, None::<&Tensor>, [stride, stride], padding, [1, 1], 1);
        x.batch_norm(Some(weight), Some(bias), Some(mean), Some(variance), false, MOMENTUM, EPS, true).relu()
    }
}

/// Convolutions one after another.
#[derive(Debug)]
struct Branch(Vec<BasicConv>);

impl Branch {
    /// `layers` are the name, the channels behind it and the geometry of each convolution.
    fn new(scope: &Scope, mut inputs: i64, layers: &[(&str, i64, Shape)]) -> Self {
        let mut conv = |&(name, outputs, shape): &(&str, i64, Shape)| {
            let conv = BasicConv::new(&scope.sub(name), inputs, outputs, shape);
            inputs = outputs;
            conv
        };
        Self(layers.iter().map(&mut conv).collect())
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        self.0.iter().fold(x.shallow_clone(), |x, conv| conv.forward(&x))
    }
}

const POINT: Shape = Shape::square(1);

/// torchvision's `InceptionA`.
#[derive(Debug)]
struct BlockA {
    branches: [Branch; 3],
    pool: Branch,
}

impl BlockA {
    fn new(scope: &Scope, inputs: i64, pool: i64) -> Self {
        let branch = |layers: &[_]| Branch::new(scope, inputs, layers);
        Self {
            branches: [
                branch(&[("branch1x1", 64, POINT)]),
                branch(&[("branch5x5_1", 48, POINT), ("branch5x5_2", 64, Shape::kept(5, 5))]),
                branch(&[
                    ("branch3x3dbl_1", 64, POINT),
                    ("branch3x3dbl_2", 96, Shape::kept(3, 3)),
                    ("branch3x3dbl_3", 96, Shape::kept(3, 3)),
                ]),
            ],
            pool: branch(&[("branch_pool", pool, POINT)]),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        beside(x, &self.branches, self.pool.forward(&Pool::Mean.forward(x)))
    }
}

/// torchvision's `InceptionB`, which halves the sides.
#[derive(Debug)]
struct BlockB([Branch; 2]);

impl BlockB {
    fn new(scope: &Scope, inputs: i64) -> Self {
        let halving = Shape::square(3).stride(2);
        Self([
            Branch::new(scope, inputs, &[("branch3x3", 384, halving)]),
            Branch::new(
                scope,
                inputs,
                &[
                    ("branch3x3dbl_1", 64, POINT),
                    ("branch3x3dbl_2", 96, Shape::kept(3, 3)),
                    ("branch3x3dbl_3", 96, halving),
                ],
            ),
        ])
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        beside(x, &self.0, shrink(x))
    }
}

/// torchvision's `InceptionC`.
#[derive(Debug)]
struct BlockC {
    branches: [Branch; 3],
    pool: Branch,
}

impl BlockC {
    fn new(scope: &Scope, inputs: i64, width: i64) -> Self {
        let branch = |layers: &[_]| Branch::new(scope, inputs, layers);
        let (across, down) = (Shape::kept(1, 7), Shape::kept(7, 1));
        Self {
            branches: [
                branch(&[("branch1x1", 192, POINT)]),
                branch(&[("branch7x7_1", width, POINT), ("branch7x7_2", width, across), ("branch7x7_3", 192, down)]),
                branch(&[
                    ("branch7x7dbl_1", width, POINT),
                    ("branch7x7dbl_2", width, down),
                    ("branch7x7dbl_3", width, across),
                    ("branch7x7dbl_4", width, down),
                    ("branch7x7dbl_5", 192, across),
                ]),
            ],
            pool: branch(&[("branch_pool", 192, POINT)]),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        beside(x, &self.branches, self.pool.forward(&Pool::Mean.forward(x)))
    }
}

/// torchvision's `InceptionD`, which halves the sides.
#[derive(Debug)]
struct BlockD([Branch; 2]);

impl BlockD {
    fn new(scope: &Scope, inputs: i64) -> Self {
        let halving = Shape::square(3).stride(2);
        let branch = |layers: &[_]| Branch::new(scope, inputs, layers);
        Self([
            branch(&[("branch3x3_1", 192, POINT), ("branch3x3_2", 320, halving)]),
            branch(&[
                ("branch7x7x3_1", 192, POINT),
                ("branch7x7x3_2", 192, Shape::kept(1, 7)),
                ("branch7x7x3_3", 192, Shape::kept(7, 1)),
                ("branch7x7x3_4", 192, halving),
            ]),
        ])
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        beside(x, &self.0, shrink(x))
    }
}

/// torchvision's `InceptionE`: two of its branches fork at the end.
#[derive(Debug)]
struct BlockE {
    point: Branch,
    forked: [(Branch, [Branch; 2]); 2],
    pooling: Pool,
    pool: Branch,
}

impl BlockE {
    fn new(scope: &Scope, inputs: i64, pooling: Pool) -> Self {
        let branch = |layers: &[_]| Branch::new(scope, inputs, layers);
        let fork = |names: [&str; 2]| {
            let [across, down] = names;
            let tip = |name, shape| Branch::new(scope, 384, &[(name, 384, shape)]);
            [tip(across, Shape::kept(1, 3)), tip(down, Shape::kept(3, 1))]
        };
        Self {
            point: branch(&[("branch1x1", 320, POINT)]),
            forked: [
                (branch(&[("branch3x3_1", 384, POINT)]), fork(["branch3x3_2a", "branch3x3_2b"])),
                (
                    branch(&[("branch3x3dbl_1", 448, POINT), ("branch3x3dbl_2", 384, Shape::kept(3, 3))]),
                    fork(["branch3x3dbl_3a", "branch3x3dbl_3b"]),
                ),
            ],
            pooling,
            pool: branch(&[("branch_pool", 192, POINT)]),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let mut parts = vec![self.point.forward(x)];
        for (stem, tips) in &self.forked {
            let stem = stem.forward(x);
            parts.extend(tips.iter().map(|tip| tip.forward(&stem)));
        }
        parts.push(self.pool.forward(&self.pooling.forward(x)));
        Tensor::cat(&parts, 1)
    }
}

/// The channels of all branches and of `last`.
fn beside(x: &Tensor, branches: &[Branch], last: Tensor) -> Tensor {
    let mut parts: Vec<Tensor> = branches.iter().map(|branch| branch.forward(x)).collect();
    parts.push(last);
    Tensor::cat(&parts, 1)
}
