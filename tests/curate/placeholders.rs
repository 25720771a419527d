//! One content under many URLs: "this image is no longer available".

use std::collections::BTreeMap;
use std::thread;

use shards::ContentHash;

use crate::server::Answer;
use crate::world::{Finished, Row, World, jpeg, some_time};

/// Sixty rows, of which every fifth brings the same bytes from another URL, and one URL's image stands in four rows.
fn world() -> World {
    let world = World::empty();
    let rows: Vec<Row> = (0..60)
        .map(|n| {
            let content = if n % 5 == 2 { 1000 } else { n };
            let path = if n % 15 == 1 { "/popular.jpg".to_owned() } else { format!("/{n}.jpg") };
            Row::new(world.server.route(&path, Answer::ok(jpeg(256, 256, content))), "some words")
        })
        .collect();
    world.laion("laion/a.parquet", &rows);
    world.recipe("[duplicates]\nplaceholder_urls = 4\n");
    world
}

fn counts(world: &World) -> BTreeMap<String, u64> {
    serde_json::from_value(world.index().totals["reasons"].clone()).unwrap()
}

#[test]
fn they_are_found_told_and_taken_out_of_the_shards() {
    let world = world();
    world.curate(&[]).ends_with(0);
    world.curate(&["--verify"]).ends_with(0);
    // Two of the twelve were copies of a sample before it was known what they are.
    let expected = [("duplicate.exact", 3), ("duplicate.placeholder", 12)];
    assert_eq!(counts(&world), expected.map(|(reason, rows)| (reason.to_owned(), rows)).into());
    let samples = world.samples();
    assert_eq!(samples.len(), 60 - 15);
    let placeholder = jpeg(256, 256, 1000);
    assert!(samples.iter().all(|sample| sample.require("jpg").unwrap() != placeholder));
    let report = std::fs::read_to_string(world.curated("report.html")).unwrap();
    assert!(report.contains("12 rows") && report.contains("placeholder"), "the report tells of it");
    assert!(report.contains(&ContentHash::of(&placeholder).to_string()[..12]));
    let (before, requests) = (world.snapshot(), world.server.requests());
    world.curate(&[]).ends_with(0);
    assert_eq!((world.snapshot(), world.server.requests()), (before, requests));
}

#[test]
fn kills_change_nothing_of_it() {
    let world = world();
    let began = std::time::Instant::now();
    world.curate(&[]).ends_with(0);
    let (wanted, whole) = (world.snapshot(), began.elapsed());
    for round in 0..4 {
        world.forget();
        for kill in 0..3 {
            let mut child = world.start();
            thread::sleep(some_time(round * 3 + kill, whole));
            child.kill().unwrap();
            let _finished = Finished(child.wait_with_output().unwrap());
        }
        world.curate(&[]).ends_with(0);
        assert!(world.snapshot() == wanted, "in round {round}");
    }
}

/// Rows that are asked for again may be what makes a placeholder of a content whose shard is finished.
#[test]
fn a_later_round_may_find_them() {
    let world = world();
    for n in 2..60 {
        if n % 5 == 2 && n > 20 {
            world.server.route(&format!("/{n}.jpg"), Answer::status(404));
        }
    }
    // Four URLs bring it, and then twelve.
    world.recipe("[duplicates]\nplaceholder_urls = 5\n");
    world.curate(&[]).ends_with(0);
    assert_eq!(counts(&world).get("duplicate.placeholder"), None);
    let kept = world.samples().len();
    for n in 2..60 {
        if n % 5 == 2 {
            world.server.route(&format!("/{n}.jpg"), Answer::ok(jpeg(256, 256, 1000)));
        }
    }
    world.curate(&["--retry-failed", "not_found"]).ends_with(0);
    world.curate(&["--verify"]).ends_with(0);
    assert_eq!(counts(&world)["duplicate.placeholder"], 12);
    assert_eq!(world.samples().len(), kept - 1);
}
