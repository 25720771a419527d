//! Small worlds to curate: pictures on a server, tables that point at them, a recipe, and the program.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use pixels::Image;
use polars::prelude::{DataFrame, ParquetWriter, df};
use serde_json::Value;
use shards::{Index, Sample, ShardReader};
use tempfile::TempDir;

use crate::server::{Answer, Server};

/// A run folder, its manifest and the server behind its tables.
pub struct World {
    pub server: Server,
    folder: TempDir,
}

/// One row of a LAION-shaped table.
#[derive(Clone)]
pub struct Row {
    pub url: Option<String>,
    pub text: Option<String>,
    pub width: Option<f64>,
    pub height: Option<f64>,
    pub score: Option<f32>,
}

impl Row {
    pub fn new(url: String, text: &str) -> Row {
        Row { url: Some(url), text: Some(text.to_owned()), width: Some(256.0), height: Some(256.0), score: Some(6.0) }
    }
}

impl World {
    /// A server and an empty folder.
    pub fn empty() -> World {
        World { server: Server::start(), folder: tempfile::tempdir().unwrap() }
    }

    /// `rows` rows, of which every tenth is small by its table, every eleventh missing and every thirteenth no
    /// image; recipe and tables written.
    pub fn of_rows(rows: u64) -> World {
        let world = World::empty();
        let rows: Vec<Row> = (0..rows).map(|n| world.row(n)).collect();
        let (laion, coyo) = rows.split_at(rows.len() * 2 / 3);
        world.laion("laion/part-0.parquet", laion);
        write(&world.path("run/tables/coyo/part-0.parquet"), &mut coyo_frame(coyo));
        world.recipe("");
        world
    }

    fn row(&self, n: u64) -> Row {
        let answer = match n {
            n if n % 11 == 7 => Answer::status(404),
            n if n % 13 == 5 => Answer::ok(b"<!doctype html><title>gone</title>".to_vec()),
            n => Answer::ok(jpeg(256, 256, n)),
        };
        let mut row = Row::new(self.server.route(&format!("/{n}.jpg"), answer), &format!("picture number {n}"));
        if n % 10 == 9 {
            row.width = Some(64.0);
        }
        row
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn run_folder(&self) -> PathBuf {
        self.path("run")
    }

    pub fn curated(&self, name: &str) -> PathBuf {
        self.path("run/curated").join(name)
    }

    /// Writes a LAION-shaped table, two row groups of it.
    pub fn laion(&self, name: &str, rows: &[Row]) {
        let column = |value: fn(&Row) -> Option<f64>| rows.iter().map(value).collect::<Vec<_>>();
        let mut frame = df!(
            "URL" => rows.iter().map(|r| r.url.clone()).collect::<Vec<_>>(),
            "TEXT" => rows.iter().map(|r| r.text.clone()).collect::<Vec<_>>(),
            "WIDTH" => column(|r| r.width),
            "HEIGHT" => column(|r| r.height),
            "AESTHETIC_SCORE" => rows.iter().map(|r| r.score).collect::<Vec<_>>(),
        )
        .unwrap();
        write(&self.path("run/tables").join(name), &mut frame);
    }

    /// The recipe of [`of_rows`](World::of_rows) with more lines for its head, replacing an earlier one.
    pub fn recipe(&self, sections: &str) {
        self.recipe_with(sections, "concurrency = 8\nper_host = 8\n");
    }

    pub fn recipe_with(&self, sections: &str, fetch: &str) {
        let filter = "[source.filter]\nmin_side = 200\nscores = [{ score = \"aesthetic_v2\", above = 5.5 }]\n";
        let coyo = self.path("run/tables/coyo").exists();
        let coyo = if coyo {
            format!("[[source]]\nkind = \"coyo\"\npaths = [\"{{run}}/tables/coyo\"]\n{filter}")
        } else {
            String::new()
        };
        self.document(&format!(
            "[fetch]\nuser_agent = \"stepdown-test/1.0 (+https://example.org)\"\nallow = [\"127.0.0.1:{}\"]\nattempts = 1\n\
             {fetch}{sections}\n[image]\nmin_side = 200\n[shards]\nsamples = 7\n\
             [[source]]\nkind = \"laion\"\npaths = [\"{{run}}/tables/laion/*.parquet\"]\n{filter}{coyo}",
            self.server.port
        ));
    }

    pub fn document(&self, text: &str) {
        fs::create_dir_all(self.path("manifest")).unwrap();
        fs::write(self.path("manifest/data.toml"), text).unwrap();
    }

    /// The program, ready to be started.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_curate"));
        command.arg("--manifest").arg(self.path("manifest")).arg("--run").arg(self.run_folder());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn curate(&self, options: &[&str]) -> Finished {
        Finished(self.command().args(options).output().unwrap())
    }

    pub fn start(&self) -> Child {
        self.command().spawn().unwrap()
    }

    pub fn index(&self) -> Index<Value> {
        Index::load(self.path("run/curated"), "stepdown-curated", 1).unwrap().expect("a finished run")
    }

    pub fn samples(&self) -> Vec<Sample> {
        let index = self.index();
        (0..index.shards.len())
            .flat_map(|at| ShardReader::open(index.shard_path(self.path("run/curated"), at)).unwrap())
            .collect::<Result<_, _>>()
            .unwrap()
    }

    /// Removes what a run made, so that it can be made anew.
    pub fn forget(&self) {
        fs::remove_dir_all(self.path("run/curated")).unwrap();
    }

    /// Every published byte, by name.
    pub fn snapshot(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        collect(&self.path("run/curated"), &mut files);
        files
    }
}

fn collect(folder: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else {
            files.insert(path.clone(), fs::read(path).unwrap());
        }
    }
}

/// How the program ended.
pub struct Finished(pub Output);

impl Finished {
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }

    #[track_caller]
    pub fn ends_with(self, code: i32) -> Finished {
        assert_eq!(self.0.status.code(), Some(code), "{}{}", self.stdout(), self.stderr());
        self
    }

    #[track_caller]
    pub fn says(self, text: &str) -> Finished {
        assert!(self.stderr().contains(text), "expected {text:?} in {}", self.stderr());
        self
    }
}

fn coyo_frame(rows: &[Row]) -> DataFrame {
    let whole = |value: fn(&Row) -> Option<f64>| rows.iter().map(|r| value(r).map(|v| v as i32)).collect::<Vec<_>>();
    df!(
        "id" => (0..rows.len() as i64).collect::<Vec<_>>(),
        "url" => rows.iter().map(|r| r.url.clone()).collect::<Vec<_>>(),
        "text" => rows.iter().map(|r| r.text.clone()).collect::<Vec<_>>(),
        "width" => whole(|r| r.width),
        "height" => whole(|r| r.height),
        "watermark_score" => rows.iter().map(|_| 0.1_f32).collect::<Vec<_>>(),
        "aesthetic_score_laion_v2" => rows.iter().map(|r| r.score).collect::<Vec<_>>(),
    )
    .unwrap()
}

pub fn write(path: &Path, frame: &mut DataFrame) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = fs::File::create(path).unwrap();
    ParquetWriter::new(file).with_row_group_size(Some(frame.height().div_ceil(2).max(1))).finish(frame).unwrap();
}

/// A picture of noise that no other seed gives.
pub fn jpeg(width: u32, height: u32, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let rgb = (0..width * height * 3).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    });
    pixels::encode_jpeg(&Image::new(width, height, rgb.collect()), 60)
}

/// Starts a run again and again and kills each after a time that follows from the next seed, so that resumed runs are
/// killed as well, until one ends by itself. The number of kills.
pub fn kill_until_it_ends(start: impl Fn() -> Child, seed: &mut u64, whole: Duration) -> u64 {
    let mut killed = 0;
    loop {
        let mut child = start();
        thread::sleep(some_time(*seed, whole));
        *seed += 1;
        let ended = child.try_wait().unwrap();
        child.kill().unwrap();
        let output = Finished(child.wait_with_output().unwrap());
        if ended.is_some() {
            output.ends_with(0);
            return killed;
        }
        killed += 1;
    }
}

/// A pseudo-random time up to `most`.
pub fn some_time(seed: u64, most: Duration) -> Duration {
    let mixed = (seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    most.mul_f64((mixed >> 11) as f64 / (1_u64 << 53) as f64)
}
