//! The base model: a folder, or a name on the hub.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use hub::{Hub, ModelName};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::Result;

/// The folder of a model as manifests and command lines name it: a path, relative ones from `beside`, or
/// `hf:OWNER/NAME[@REVISION][:fp16]`, which is fetched into the user's cache where it is not there yet.
pub fn model_folder(text: &str, beside: &Path) -> Result<PathBuf> {
    if !text.starts_with(hub::PREFIX) {
        return Ok(beside.join(text));
    }
    let name: ModelName = text.parse()?;
    let bar = download_bar();
    let folder = Hub::from_env()?.model(&name, &bar)?;
    bar.finish_and_clear();
    Ok(folder)
}

/// Shown on a terminal only; elsewhere the hub's log lines tell of progress.
fn download_bar() -> ProgressBar {
    let target =
        if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template("{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left")
        .expect("the template is well formed");
    ProgressBar::with_draw_target(None, target).with_style(style)
}
