//! What one can ask about a scene: the background's pattern and tint and, for each place, which shape in which colour
//! and size stands there, if any. Text encoders learn the answers from captions, the probe from pixels.

use demo_world::scene::{Colour, Object, Pattern, Place, Scene, Shape, Size, Tint};
use tch::{Kind, Tensor};

/// A question with a closed set of answers, numbered from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// The background's pattern.
    Pattern,
    /// The background's tint.
    Tint,
    /// The shape at a place; 0 is none.
    Shape(Place),
    /// The colour of what stands at a place; 0 is nothing.
    Colour(Place),
    /// The size of what stands at a place; 0 is nothing.
    Size(Place),
}

impl Question {
    /// All questions, in the order of logits and answers.
    pub fn all() -> impl Iterator<Item = Question> {
        let at_places = Place::ALL
            .iter()
            .flat_map(|&place| [Question::Shape(place), Question::Colour(place), Question::Size(place)]);
        [Question::Pattern, Question::Tint].into_iter().chain(at_places)
    }

    /// How many questions there are.
    pub fn count() -> usize {
        2 + 3 * Place::ALL.len()
    }

    /// How many answers there are to all of them: the width of the logits.
    pub fn logits() -> i64 {
        Question::all().map(Question::answers).sum()
    }

    /// How many answers this one has.
    pub fn answers(self) -> i64 {
        let answers = match self {
            Question::Pattern => Pattern::ALL.len(),
            Question::Tint => Tint::ALL.len(),
            Question::Shape(_) => 1 + Shape::ALL.len(),
            Question::Colour(_) => 1 + Colour::ALL.len(),
            Question::Size(_) => 1 + Size::ALL.len(),
        };
        answers as i64
    }

    /// The right answer.
    pub fn answer(self, scene: &Scene) -> i64 {
        let at = |place, answer: fn(&Object) -> usize| {
            scene.objects.iter().find(|object| object.place == place).map_or(0, |object| 1 + answer(object))
        };
        let answer = match self {
            Question::Pattern => scene.pattern.index(),
            Question::Tint => scene.tint.index(),
            Question::Shape(place) => at(place, |object| object.shape.index()),
            Question::Colour(place) => at(place, |object| object.colour.index()),
            Question::Size(place) => at(place, |object| object.size.index()),
        };
        answer as i64
    }

    /// Whether a caption of the scene asks for this: the background, and shape and colour of each of its objects.
    pub fn is_asked(self, scene: &Scene) -> bool {
        match self {
            Question::Pattern | Question::Tint => true,
            Question::Shape(place) | Question::Colour(place) => {
                scene.objects.iter().any(|object| object.place == place)
            }
            Question::Size(_) => false,
        }
    }
}

/// The right answers `[B, questions]`.
pub fn answers(scenes: &[Scene]) -> Tensor {
    let answers: Vec<i64> =
        scenes.iter().flat_map(|scene| Question::all().map(|question| question.answer(scene))).collect();
    Tensor::from_slice(&answers).view([scenes.len() as i64, Question::count() as i64])
}

/// The mean cross entropy over all questions of `logits [B, answers]`.
pub fn loss(logits: &Tensor, answers: &Tensor) -> Tensor {
    let losses: Vec<Tensor> = split(logits)
        .enumerate()
        .map(|(at, logits)| logits.cross_entropy_for_logits(&answers.select(1, at as i64)))
        .collect();
    Tensor::stack(&losses, 0).mean(Kind::Float)
}

/// The likeliest answers `[B, questions]`.
pub fn choices(logits: &Tensor) -> Tensor {
    let choices: Vec<Tensor> = split(logits).map(|logits| logits.argmax(1, false)).collect();
    Tensor::stack(&choices, 1)
}

/// How well answers fit what captions ask for.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Accuracy {
    /// The share of things asked for that are there.
    pub things: f64,
    /// The share of captions of which everything is there.
    pub captions: f64,
}

/// Compares `choices [B, questions]` with what the captions of `scenes` ask for.
pub fn accuracy(choices: &Tensor, scenes: &[Scene]) -> Accuracy {
    let chosen: Vec<i64> = Vec::try_from(choices.contiguous().view([-1])).expect("choices are whole numbers");
    let (mut asked, mut right, mut complete) = (0u64, 0u64, 0u64);
    for (chosen, scene) in chosen.chunks(Question::count()).zip(scenes) {
        let mut all = true;
        for (question, &choice) in Question::all().zip(chosen).filter(|(question, _)| question.is_asked(scene)) {
            let fits = choice == question.answer(scene);
            asked += 1;
            right += u64::from(fits);
            all &= fits;
        }
        complete += u64::from(all);
    }
    Accuracy { things: right as f64 / asked as f64, captions: complete as f64 / scenes.len() as f64 }
}

fn split(logits: &Tensor) -> impl Iterator<Item = Tensor> + '_ {
    Question::all().scan(0, |start, question| {
        let part = logits.narrow(1, *start, question.answers());
        *start += question.answers();
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use demo_world::scene::{Split, item_rng};

    fn scenes() -> Vec<Scene> {
        (0..32).map(|item| Scene::draw(Split::Shown, &mut item_rng(1, 0, item))).collect()
    }

    /// Logits that give each right answer the value `margin` and all others zero.
    fn confident(answers: &Tensor, margin: f64) -> Tensor {
        let parts: Vec<Tensor> = Question::all()
            .enumerate()
            .map(|(at, question)| {
                answers.select(1, at as i64).one_hot(question.answers()).to_kind(Kind::Float) * margin
            })
            .collect();
        Tensor::cat(&parts, 1)
    }

    #[test]
    fn right_answers_cost_nothing_and_are_all_right() {
        let scenes = scenes();
        let answers = answers(&scenes);
        let logits = confident(&answers, 40.0);
        assert_eq!(logits.size()[1], Question::logits());
        assert!(loss(&logits, &answers).double_value(&[]) < 1e-6);
        assert_eq!(choices(&logits), answers);
        assert_eq!(accuracy(&answers, &scenes), Accuracy { things: 1.0, captions: 1.0 });
    }

    #[test]
    fn no_opinion_costs_the_logarithm_of_the_answers() {
        let scenes = scenes();
        let logits = Tensor::zeros([32, Question::logits()], (Kind::Float, tch::Device::Cpu));
        let expected: f64 =
            Question::all().map(|question| (question.answers() as f64).ln()).sum::<f64>() / Question::count() as f64;
        assert!((loss(&logits, &answers(&scenes)).double_value(&[]) - expected).abs() < 1e-5);
    }

    #[test]
    fn a_wrong_background_spoils_every_caption_and_a_wrong_size_none() {
        let scenes = scenes();
        let spoil = |question: Question| {
            let mut choices = answers(&scenes);
            let at = Question::all().position(|other| other == question).unwrap() as i64;
            let _wrong = choices.select(1, at).fill_(99);
            accuracy(&std::mem::replace(&mut choices, Tensor::new()), &scenes)
        };
        let tint = spoil(Question::Tint);
        assert_eq!(tint.captions, 0.0);
        assert!(tint.things > 0.5 && tint.things < 1.0);
        assert_eq!(spoil(Question::Size(Place::Centre)), Accuracy { things: 1.0, captions: 1.0 });
    }
}
