//! Scenes: what may stand in a picture, how one is drawn by lot, and how it is put into words.
//!
//! A scene is a background (a pattern in a tint) with one object, or with two beside or above each other. Objects
//! and backgrounds take their colours from separate sets, so a colour word in a caption belongs to one thing. One
//! combination of attributes in [`HELD_OUT_ONE_IN`] is held out: it appears in no world and in no training batch,
//! and captions for evaluation come from those alone.

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// One attribute combination in this many is kept for evaluation.
pub const HELD_OUT_ONE_IN: u64 = 10;

/// A closed set of words: an enum with all its values, each with the word that captions use for it.
macro_rules! vocabulary {
    ($(#[$doc:meta])* $name:ident { $($(#[$value_doc:meta])* $value:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $(#[doc = $word] $value),+ }

        impl $name {
            /// Every value, in the order of the probe's classes.
            pub const ALL: &[Self] = &[$(Self::$value),+];

            /// The word in captions.
            pub fn word(self) -> &'static str {
                match self { $(Self::$value => $word),+ }
            }

            /// The place in [`Self::ALL`].
            pub fn index(self) -> usize {
                self as usize
            }
        }
    };
}

vocabulary! {
    /// What an object is.
    Shape { Circle = "circle", Square = "square", Triangle = "triangle", Star = "star", Ring = "ring", Cross = "cross" }
}
vocabulary! {
    /// What colour an object has.
    Colour {
        Red = "red", Orange = "orange", Yellow = "yellow", Green = "green",
        Blue = "blue", Purple = "purple", Black = "black", White = "white",
    }
}
vocabulary! {
    /// How a background is patterned.
    Pattern { Plain = "plain", Gradient = "gradient", Striped = "striped", Checkered = "checkered" }
}
vocabulary! {
    /// What colour a background has.
    Tint { Sand = "sand", Mint = "mint", Sky = "sky", Rose = "rose", Grey = "grey", Brown = "brown" }
}
vocabulary! {
    /// How large an object is. Two objects in one scene are both medium, and captions leave that out.
    Size { Small = "small", Medium = "medium", Large = "large" }
}
vocabulary! {
    /// Where an object stands.
    Place {
        Centre = "in the centre", Left = "on the left", Right = "on the right",
        Top = "at the top", Bottom = "at the bottom",
    }
}

/// One object. Lengths are in sides of the centred square of the picture.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Object {
    /// What it is.
    pub shape: Shape,
    /// Its colour.
    pub colour: Colour,
    /// Its size class.
    pub size: Size,
    /// Its place class.
    pub place: Place,
    /// The exact centre, from the square's top left corner.
    pub centre: [f32; 2],
    /// The exact radius of the circle that holds it.
    pub radius: f32,
}

/// A background with one object or two.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scene {
    /// The background's pattern.
    pub pattern: Pattern,
    /// The background's colour.
    pub tint: Tint,
    /// The pattern's offset, in periods.
    pub phase: f32,
    /// One object, or two that differ in shape or colour.
    pub objects: Vec<Object>,
}

/// Which attribute combinations a scene may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Those that worlds and training batches show.
    Shown,
    /// Those kept for evaluation.
    HeldOut,
}

/// The random numbers of one item: independent of every other item and of the order in which they are made.
pub fn item_rng(seed: u64, stream: u64, item: u64) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&stream.to_le_bytes());
    key[16..24].copy_from_slice(&item.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

impl Scene {
    /// Draws a scene of the given split by lot.
    pub fn draw(split: Split, rng: &mut impl Rng) -> Self {
        loop {
            let scene = Self::draw_any(rng);
            if scene.split() == split {
                return scene;
            }
        }
    }

    /// Draws a shown scene in black, white and grey, for pictures without colour.
    pub fn draw_grey(rng: &mut impl Rng) -> Self {
        loop {
            let mut scene = Self::draw_any(rng);
            scene.tint = Tint::Grey;
            for (object, colour) in scene.objects.iter_mut().zip([Colour::Black, Colour::White]) {
                object.colour = colour;
            }
            if scene.split() == Split::Shown {
                return scene;
            }
        }
    }

    fn draw_any(rng: &mut impl Rng) -> Self {
        let pattern = pick(Pattern::ALL, rng);
        let tint = pick(Tint::ALL, rng);
        let phase = rng.random_range(0.0..1.0);
        let objects = if rng.random_bool(0.6) {
            let size = pick(&[Size::Small, Size::Large], rng);
            let place = pick(Place::ALL, rng);
            vec![Object::draw(size, place, rng)]
        } else {
            let places = pick(&[[Place::Left, Place::Right], [Place::Top, Place::Bottom]], rng);
            let first = Object::draw(Size::Medium, places[0], rng);
            let mut second = Object::draw(Size::Medium, places[1], rng);
            while (second.shape, second.colour) == (first.shape, first.colour) {
                second = Object::draw(Size::Medium, places[1], rng);
            }
            vec![first, second]
        };
        Self { pattern, tint, phase, objects }
    }

    /// The split of this combination of attributes; exact positions, sizes and the phase do not matter.
    pub fn split(&self) -> Split {
        let attributes = self.objects.iter().flat_map(|object| {
            [object.shape.index(), object.colour.index(), object.size.index(), object.place.index()]
        });
        // FNV-1a.
        let hash = [self.pattern.index(), self.tint.index()]
            .into_iter()
            .chain(attributes)
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, word| (hash ^ word as u64).wrapping_mul(0x100_0000_01b3));
        if (hash >> 32) % HELD_OUT_ONE_IN == 0 { Split::HeldOut } else { Split::Shown }
    }

    /// Puts the scene into words: all attributes, in one of several phrasings.
    pub fn caption(&self, rng: &mut impl Rng) -> String {
        let (pattern, tint) = (self.pattern.word(), self.tint.word());
        let phrasing = rng.random_range(0..4);
        let things = match self.objects.as_slice() {
            [object] => {
                let size = object.size.word();
                let name = object.name();
                let place = object.place.word();
                match phrasing {
                    1 => format!("{size} {name} {place}"),
                    _ => format!("a {size} {name} {place}"),
                }
            }
            objects => {
                let (first, second) = (&objects[0], &objects[1]);
                let (before, after) = match first.place {
                    Place::Top => ("above", "below"),
                    _ => ("to the left of", "to the right of"),
                };
                match phrasing {
                    0 => format!("{} {before} {}", first.name_with_article(), second.name_with_article()),
                    1 => {
                        format!("{} {} and {} {}", first.name(), first.place.word(), second.name(), second.place.word())
                    }
                    _ => format!("{} {after} {}", second.name_with_article(), first.name_with_article()),
                }
            }
        };
        match phrasing {
            0 => format!("{things} on a {pattern} {tint} background"),
            1 => format!("{things}, {pattern} {tint} background"),
            2 => format!("an illustration of {things} against a {pattern} {tint} background"),
            _ => format!("a {pattern} {tint} background with {things}"),
        }
    }
}

impl Object {
    fn draw(size: Size, place: Place, rng: &mut impl Rng) -> Self {
        let pair = size == Size::Medium;
        let reach = if pair { 0.23 } else { 0.2 };
        let (x, y) = match place {
            Place::Centre => (0.0, 0.0),
            Place::Left => (-reach, 0.0),
            Place::Right => (reach, 0.0),
            Place::Top => (0.0, -reach),
            Place::Bottom => (0.0, reach),
        };
        let radius = match size {
            Size::Small => 0.13,
            Size::Medium => 0.18,
            Size::Large => 0.24,
        };
        let mut jitter = || rng.random_range(-0.025..0.025);
        let centre = [0.5 + x + jitter(), 0.5 + y + jitter()];
        let radius = radius * (1.0 + 2.0 * jitter());
        Self { shape: pick(Shape::ALL, rng), colour: pick(Colour::ALL, rng), size, place, centre, radius }
    }

    fn name(&self) -> String {
        format!("{} {}", self.colour.word(), self.shape.word())
    }

    fn name_with_article(&self) -> String {
        let article = if self.colour == Colour::Orange { "an" } else { "a" };
        format!("{article} {}", self.name())
    }
}

fn pick<T: Copy>(values: &[T], rng: &mut impl Rng) -> T {
    *values.choose(rng).expect("the sets of values are not empty")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn scenes(split: Split, count: u64) -> Vec<Scene> {
        (0..count).map(|item| Scene::draw(split, &mut item_rng(7, 1, item))).collect()
    }

    #[test]
    fn the_same_item_gives_the_same_scene_and_caption() {
        let one = |item| {
            let mut rng = item_rng(3, 5, item);
            let scene = Scene::draw(Split::Shown, &mut rng);
            (scene.caption(&mut rng), scene)
        };
        assert_eq!(one(11), one(11));
        assert_ne!(one(11), one(12));
    }

    #[test]
    fn the_splits_do_not_overlap_and_have_the_promised_share() {
        let captions = |split| {
            scenes(split, 2000)
                .iter()
                .flat_map(|scene| (0..4).map(|item| scene.caption(&mut item_rng(0, 0, item))).collect::<Vec<_>>())
                .collect::<HashSet<_>>()
        };
        assert!(captions(Split::Shown).is_disjoint(&captions(Split::HeldOut)));
        let held_out =
            (0..20_000).filter(|&item| Scene::draw_any(&mut item_rng(1, 1, item)).split() == Split::HeldOut).count();
        assert!((1_800..2_200).contains(&held_out), "{held_out} of 20000 held out");
    }

    #[test]
    fn captions_spell_out_every_attribute() {
        for (item, scene) in scenes(Split::Shown, 500).iter().enumerate() {
            let caption = scene.caption(&mut item_rng(2, 2, item as u64));
            let mut words = vec![scene.pattern.word(), scene.tint.word()];
            for object in &scene.objects {
                words.extend([object.shape.word(), object.colour.word()]);
                if scene.objects.len() == 1 {
                    words.extend([object.size.word(), object.place.word()]);
                }
            }
            for word in words {
                assert!(caption.contains(word), "{caption:?} lacks {word:?}");
            }
        }
    }

    #[test]
    fn objects_stay_inside_the_square_and_apart() {
        for scene in scenes(Split::Shown, 1000) {
            for object in &scene.objects {
                for axis in object.centre {
                    assert!(axis - object.radius > 0.0 && axis + object.radius < 1.0, "{object:?}");
                }
            }
            if let [first, second] = scene.objects.as_slice() {
                let distance = (first.centre[0] - second.centre[0]).hypot(first.centre[1] - second.centre[1]);
                assert!(distance > first.radius + second.radius, "{scene:?}");
            }
        }
    }
}
