//! Interruptions of every kind, after which the result is the one of an undisturbed run.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::server::{Answer, Server};
use crate::world::{Finished, Row, World, jpeg, kill_until_it_ends};

const ROWS: u64 = 120;

/// A finished, undisturbed run: everything it published.
fn undisturbed(world: &World) -> BTreeMap<PathBuf, Vec<u8>> {
    world.curate(&[]).ends_with(0);
    let snapshot = world.snapshot();
    world.forget();
    snapshot
}

#[track_caller]
fn assert_same(world: &World, wanted: &BTreeMap<PathBuf, Vec<u8>>) {
    let found = world.snapshot();
    assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    for (path, bytes) in wanted {
        assert!(found[path] == *bytes, "{} differs", path.display());
    }
    world.curate(&["--verify"]).ends_with(0);
}

/// Number of kill points; `CURATE_KILLS=200` for the whole campaign.
fn kills() -> u64 {
    std::env::var("CURATE_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(24)
}

#[test]
fn a_killed_run_converges_to_the_bytes_of_an_undisturbed_one() {
    let world = World::of_rows(ROWS);
    let wanted = undisturbed(&world);
    world.server.shuffle(1, Duration::from_millis(30));
    let started = Instant::now();
    undisturbed(&world);
    let whole = started.elapsed();
    let (mut killed, mut seed) = (0, 0);
    while killed < kills() {
        killed += kill_until_it_ends(|| world.start(), &mut seed, whole);
        assert_same(&world, &wanted);
        world.forget();
    }
}

#[test]
fn neither_connections_nor_the_order_of_arrival_change_a_byte() {
    let world = World::of_rows(ROWS);
    let wanted = undisturbed(&world);
    for (seed, connections) in [(1, 1), (2, 3), (3, 64)] {
        world.server.shuffle(seed, Duration::from_millis(20));
        world.recipe_with("", &format!("concurrency = {connections}\nper_host = {connections}\n"));
        world.curate(&[]).ends_with(0);
        let found = world.snapshot();
        for (path, bytes) in &wanted {
            // The report prints the recipe, which differs by the number of connections.
            assert!(found[path] == *bytes || path.ends_with("report.html"), "{} differs", path.display());
        }
        world.forget();
    }
}

#[test]
fn sigterm_and_sigint_end_with_130_and_nothing_is_asked_for_twice() {
    for signal in ["TERM", "INT"] {
        let world = World::of_rows(ROWS);
        let wanted = undisturbed(&world);
        world.server.shuffle(4, Duration::from_millis(40));
        let before = world.server.asked();
        let child = world.start();
        while world.server.requests() < before.values().sum::<u64>() + 40 {
            thread::sleep(Duration::from_millis(2));
        }
        let pid = child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{signal}"), &pid]).status().unwrap().success());
        Finished(child.wait_with_output().unwrap()).ends_with(130).says("interrupted");
        assert!(!world.curated("index.json").exists(), "nothing is published half");
        world.curate(&[]).ends_with(0);
        assert_same(&world, &wanted);
        // Only what was in flight at the signal may be asked for again: one request for each connection.
        let again = world.server.asked().iter().filter(|(path, n)| **n > before[*path] + 1).count();
        assert!(again <= 8, "{again} rows were asked for twice");
    }
}

#[test]
fn a_full_disk_stops_the_run_which_goes_on_when_there_is_space() {
    let world = World::of_rows(ROWS);
    let wanted = undisturbed(&world);
    // A limit on the size of files stands in for a full disk; the signal that comes with it is ignored, as a
    // full disk sends none.
    let command = world.command();
    let limited = Command::new("bash")
        .arg("-c")
        .arg("trap '' XFSZ; ulimit -f 300; exec \"$@\"")
        .arg("bash")
        .arg(command.get_program())
        .args(command.get_args())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    Finished(limited).ends_with(1).says("cannot write");
    assert!(!world.curated("index.json").exists());
    world.curate(&[]).ends_with(0);
    assert_same(&world, &wanted);
}

#[test]
fn what_a_power_loss_leaves_of_the_journal_is_asked_for_again() {
    let world = World::of_rows(ROWS);
    let wanted = undisturbed(&world);
    world.server.shuffle(5, Duration::from_millis(30));
    for damage in 0..3_usize {
        let mut child = world.start();
        let segment = world.curated("journal/answers/00000000.segment");
        while fs::metadata(&segment).map_or(0, |m| m.len()) < 400_000 {
            thread::sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let mut bytes = fs::read(&segment).unwrap();
        let at = bytes.len() / 2;
        match damage {
            0 => bytes.truncate(at),
            1 => bytes[at] ^= 0x10,
            _ => bytes[at..].fill(0),
        }
        fs::write(&segment, bytes).unwrap();
        world.curate(&[]).ends_with(0);
        assert_same(&world, &wanted);
        world.forget();
    }
}

#[test]
fn a_second_process_is_turned_away_and_changes_nothing() {
    let world = World::empty();
    let slow = world.server.route("/slow.jpg", Answer::ok(jpeg(256, 256, 1)).after(Duration::from_secs(2)));
    world.laion("laion/a.parquet", &[Row::new(slow, "a slow picture")]);
    world.recipe("");
    let first = world.start();
    while world.server.requests() == 0 {
        thread::sleep(Duration::from_millis(5));
    }
    let before = world.snapshot();
    world.curate(&[]).ends_with(1).says("another process is working here");
    assert_eq!(world.snapshot(), before);
    Finished(first.wait_with_output().unwrap()).ends_with(0);
}

#[test]
fn a_changed_recipe_or_table_is_refused_by_name() {
    let world = World::of_rows(30);
    world.curate(&[]).ends_with(0);
    let (before, requests) = (world.snapshot(), world.server.requests());
    world.recipe("[sharpness]\nmin_whole = 1.0");
    world.curate(&[]).ends_with(2).says("sharpness.rules changed");
    world.recipe("[captions]\nmin_words = 2");
    world.curate(&[]).ends_with(2).says("captions changed");
    world.recipe_with("", "concurrency = 2\ntotal_seconds = 99.0\n");
    world.curate(&[]).ends_with(0);
    world.laion("laion/part-1.parquet", &[Row::new("http://127.0.0.1/x".into(), "one more row")]);
    world.curate(&[]).ends_with(2).says("source 0: part-1.parquet from row 20 is new");
    assert_eq!((world.snapshot(), world.server.requests()), (before, requests));
}

/// A world whose rows lead each to another host, to `address(n)`, all of which may be reached.
fn of_hosts(address: impl Fn(u8) -> String) -> World {
    let world = World::empty();
    let rows: Vec<Row> =
        (1..60).map(|n| Row::new(format!("http://{}/{n}.jpg", address(n)), "nobody is there")).collect();
    world.laion("laion/part-0.parquet", &rows);
    world.recipe_with("", "concurrency = 4\noutage_failures = 20\noutage_hosts = 5\nconnect_seconds = 2.0\n");
    let text = fs::read_to_string(world.path("manifest/data.toml")).unwrap();
    let allow: Vec<String> = (1..60).map(|n| format!("\"{}:*\"", address(n).split(':').next().unwrap())).collect();
    world.document(&text.replace("allow = [", &format!("allow = [{}, ", allow.join(", "))));
    world
}

#[test]
fn a_dead_network_stops_the_run_and_fails_no_row() {
    // No connection is ever made to a multicast address: there is no way, as without a network.
    let world = of_hosts(|n| format!("224.0.0.{n}"));
    world.curate(&[]).ends_with(1).says("is the network up?");
    assert!(!world.curated("index.json").exists());
}

/// Rows that are asked for again fail again, most of them. That is no outage.
#[test]
fn dead_hosts_stop_no_run_and_may_be_asked_for_again() {
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let world = of_hosts(|n| format!("127.0.0.{n}:{dead}"));
    world.curate(&[]).ends_with(0);
    world.curate(&["--retry-failed", "connect"]).ends_with(0);
    assert_eq!(world.index().totals["reasons"], serde_json::json!({ "fetch.connect": 59 }));
}

/// Its rows come first, and more of them than there may be requests; the rows behind them do not wait.
#[test]
fn a_host_that_is_slow_or_asks_for_patience_holds_up_no_other() {
    let throttling = Answer::status(429).with("Retry-After", "1");
    let slow = Answer::ok(jpeg(256, 256, 1000)).after(Duration::from_millis(300));
    for (name, answer) in [("throttling", throttling), ("slow", slow)] {
        let world = World::empty();
        let fast = Server::start_on("127.0.0.2");
        let rows = |server: &Server, count: u64, answer: &dyn Fn(u64) -> Answer| -> Vec<Row> {
            let urls = (0..count).map(|n| server.route(&format!("/{n}.jpg"), answer(n)));
            urls.map(|url| Row::new(url, "some words")).collect()
        };
        let mut table = rows(&world.server, 30, &|_| answer.clone());
        table.extend(rows(&fast, 60, &|n| Answer::ok(jpeg(256, 256, n))));
        world.laion("laion/a.parquet", &table);
        world.recipe_with("", "concurrency = 4\nper_host = 2\nmax_retry_after_seconds = 60.0\n");
        let recipe = fs::read_to_string(world.path("manifest/data.toml")).unwrap();
        world.document(&recipe.replace("allow = [", "allow = [\"127.0.0.2:*\", "));
        let mut child = world.start();
        while fast.requests() < 60 {
            assert!(child.try_wait().unwrap().is_none(), "{name}");
            thread::sleep(Duration::from_millis(5));
        }
        let asked = world.server.requests();
        assert!(asked < 15, "{name}: {asked} of 30 rows were answered before the others");
        if name == "slow" {
            Finished(child.wait_with_output().unwrap()).ends_with(0);
            assert_eq!(world.index().totals["rows"], 90);
        } else {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

#[test]
fn verify_finds_every_damage_and_a_run_finds_a_missing_shard() {
    let world = World::of_rows(30);
    world.curate(&["--verify"]).ends_with(2).says("no finished run");
    world.curate(&[]).ends_with(0);
    let shard = world.curated("shards/000001.tar");
    let whole = fs::read(&shard).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for damaged in [flipped, whole[..whole.len() - 512].to_vec()] {
        fs::write(&shard, damaged).unwrap();
        world.curate(&["--verify"]).ends_with(1).says("000001.tar");
    }
    fs::remove_file(&shard).unwrap();
    world.curate(&["--verify"]).ends_with(1).says("000001.tar");
    world.curate(&[]).ends_with(1).says("000001.tar");
    fs::write(&shard, whole).unwrap();
    world.curate(&["--verify"]).ends_with(0);
    for name in ["samples.parquet", "ledger/000000.jsonl"] {
        let whole = fs::read(world.curated(name)).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        fs::write(world.curated(name), flipped).unwrap();
        world.curate(&["--verify"]).ends_with(1).says(name).says("SHA-256 is");
        fs::write(world.curated(name), whole).unwrap();
    }
    let stray = world.curated("shards/000099.tar");
    fs::write(&stray, b"").unwrap();
    world.curate(&["--verify"]).ends_with(1).says("000099.tar: is not in the index");
    fs::remove_file(stray).unwrap();

    // The index of an earlier version names shards alone.
    let index = world.curated("index.json");
    let mut earlier: serde_json::Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    assert!(earlier["totals"].as_object_mut().unwrap().remove("files").is_some());
    fs::write(&index, earlier.to_string()).unwrap();
    world.curate(&["--verify"]).ends_with(0);
}

#[test]
fn a_process_without_parent_or_terminal_writes_plain_lines() {
    let world = World::of_rows(12);
    let mut command = world.command();
    let output = Finished(command.process_group(0).stdin(Stdio::null()).output().unwrap()).ends_with(0);
    assert!(!output.stderr().contains('\u{1b}'), "{}", output.stderr());
}

#[test]
fn failed_rows_are_asked_for_again_by_class_and_added() {
    let world = World::of_rows(60);
    world.curate(&["--retry-failed", "not_found"]).ends_with(2).says("no finished run");
    for no_failure in ["tired", "filter"] {
        let says = format!("\"{no_failure}\" names no failure of fetch or decode");
        world.curate(&["--retry-failed", no_failure]).ends_with(2).says(&says);
    }
    world.curate(&[]).ends_with(0);
    let first = world.snapshot();
    let kept = world.samples().len();
    let missing: Vec<u64> = (0..60).filter(|n| n % 11 == 7 && n % 10 != 9).collect();
    for n in &missing {
        world.server.route(&format!("/{n}.jpg"), Answer::ok(jpeg(256, 256, *n)));
    }
    let before = world.server.requests();
    world.server.shuffle(9, Duration::from_millis(60));

    // Killed in the middle, it goes on without being told again what to retry.
    let mut child = world.command().args(["--retry-failed", "fetch.not_found"]).spawn().unwrap();
    while world.server.requests() == before {
        thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    world.curate(&["--retry-failed", "dns"]).ends_with(2).says("unfinished run");
    world.curate(&[]).ends_with(0);

    assert!(world.server.requests() - before <= 2 * missing.len() as u64, "only failed rows are asked for");
    let samples = world.samples();
    assert_eq!(samples.len(), kept + missing.len());
    let keys: std::collections::BTreeSet<_> = samples.iter().map(|s| &s.key).collect();
    assert_eq!(keys.len(), samples.len());
    let totals = world.index().totals;
    assert_eq!(totals["kept"].as_u64(), Some(samples.len() as u64));
    assert!(totals["reasons"].get("fetch.not_found").is_none(), "{totals}");
    for (path, bytes) in first.iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "tar")) {
        assert!(fs::read(path).unwrap() == *bytes, "{} is rewritten", path.display());
    }
    world.curate(&["--verify"]).ends_with(0);
    let requests = world.server.requests();
    world.curate(&[]).ends_with(0);
    assert_eq!(world.server.requests(), requests);
}
