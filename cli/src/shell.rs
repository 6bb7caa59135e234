//! What shells and `man` want to know, made from the command line's own description.

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
};

use clap::CommandFactory;
use clap_complete::Shell;

use crate::{
    Cli, Done,
    exit::{Exit, Failure},
};

/// Where the scripts go.
pub(crate) const COMPLETIONS_HELP: &str = "\
Examples:
  ucrpc completions bash > /etc/bash_completion.d/ucrpc
  ucrpc completions zsh > \"${fpath[1]}/_ucrpc\"
  ucrpc completions fish > ~/.config/fish/completions/ucrpc.fish";

/// Arguments of `completions`.
#[derive(clap::Args)]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

/// Arguments of `man`.
#[derive(clap::Args)]
pub(crate) struct Man {
    /// Where the pages of all commands go, for instance /usr/local/share/man/man1; without it the main one is printed
    dir: Option<PathBuf>,
}

pub(crate) fn completions(args: &Completions) -> Done {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "ucrpc", &mut script);
    Ok(io::stdout().write_all(&script)?)
}

pub(crate) fn man(args: &Man) -> Done {
    let Some(dir) = &args.dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command()).render(&mut page)?;
        return Ok(io::stdout().write_all(&page)?);
    };
    let failed = |e: io::Error| Failure::new(Exit::Failed, format!("cannot write to {}: {e}", dir.display()));
    fs::create_dir_all(dir).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), dir).map_err(failed)
}
