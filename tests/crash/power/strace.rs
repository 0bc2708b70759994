//! Records the file calls of a process with strace, and reads the recording.
//!
//! Called by `record`. The reader must never guess: a line, a cut-off string or an escape that it does not understand is a panic, or
//! crash states would be made of something that never happened.

use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Stdio};

/// What can change a file, what says which file that is, and what would change one in a way the model does not know. A `?` lets strace pass
/// over calls that the processor's architecture does not have.
const CALLS: &str = "trace=?open,openat,?openat2,?creat,read,?readv,write,pwrite64,writev,pwritev,?pwritev2,ftruncate,truncate,\
fallocate,fsync,fdatasync,sync_file_range,sync,syncfs,msync,mmap,?mremap,?rename,renameat,?renameat2,?unlink,unlinkat,?rmdir,?link,linkat,\
?symlink,symlinkat,?mkdir,mkdirat,?mknod,mknodat,close,?close_range,dup,?dup2,dup3,fcntl,ioctl,lseek,copy_file_range,?sendfile,splice,\
?io_uring_setup,?io_setup,execve,?fork,?vfork";
/// Longer than any single write of the engine: twice a log segment.
const LONGEST: usize = 16 * 1024 * 1024;

/// One argument: its text outside of strings, and the strings in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arg {
    pub text: String,
    pub strings: Vec<Vec<u8>>,
}

/// One call, whole: from its start to its end other threads may have done other things.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub name: String,
    pub args: Vec<Arg>,
    /// `None`: the process ended in it. Negative for an error.
    pub result: Option<i64>,
}

/// What the recording has in the order of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The call with this index began.
    Begin(usize),
    /// It returned.
    End(usize),
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Recording {
    pub calls: Vec<Call>,
    pub moments: Vec<Moment>,
}

impl Recording {
    /// Whether the process was killed in the midst of a call that may have changed a file: what is left of that cannot be known.
    pub fn is_cut(&self) -> bool {
        const CHANGE_NOTHING: [&str; 11] = [
            "fsync",
            "fdatasync",
            "sync_file_range",
            "read",
            "close",
            "mmap",
            "lseek",
            "fcntl",
            "ioctl",
            "execve",
            "???",
        ];
        let cut = |call: &Call| call.result.is_none() && !CHANGE_NOTHING.contains(&call.name.as_str());
        self.calls.iter().any(cut)
    }
}

/// `Err` says why nothing can be recorded here.
pub fn usable() -> Result<(), String> {
    let probe = Command::new("strace")
        .args(["-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", "-e", CALLS, "true"])
        .stdin(Stdio::null())
        .output();
    match probe {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("strace: {error}")),
    }
}

/// The arguments that make strace record `program` into `file`; with `kill_at`, it is killed when a thread begins its so-manieth `fdatasync`.
pub fn command(file: &Path, kill_at: Option<u32>, program: &Path) -> Command {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-e", "signal=none", "-s"]).arg(LONGEST.to_string());
    command.arg("-e").arg(CALLS).arg("-o").arg(file);
    match kill_at {
        Some(count) => command.arg("-e").arg(format!("inject=fdatasync:signal=KILL:when={count}")),
        // Stops at these calls only, which is much faster, but then strace does not inject.
        None => command.arg("--seccomp-bpf"),
    };
    command.arg(program).stdin(Stdio::null());
    command
}

pub fn read(trace: &[u8]) -> Recording {
    let mut recording = Recording::default();
    let mut cut: HashMap<&[u8], (usize, Vec<u8>)> = HashMap::new();
    for line in trace.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let space = find(line, b" ").expect("a process id and a space begin each line");
        let (pid, text) = (&line[..space], line[space..].trim_ascii());
        if text.starts_with(b"+++ ") || text.starts_with(b"--- ") {
            continue;
        }
        if let Some(rest) = text.strip_prefix(b"<... ") {
            let resumed = find(rest, b" resumed>").expect("a call goes on with its name and a mark");
            let (index, mut whole) = cut.remove(pid).expect("a call goes on that was cut before");
            whole.extend_from_slice(&rest[resumed + b" resumed>".len()..]);
            recording.calls[index] = call(&whole);
            recording.moments.push(Moment::End(index));
            continue;
        }
        let index = recording.calls.len();
        recording.moments.push(Moment::Begin(index));
        if let Some(begun) = text.strip_suffix(b" <unfinished ...>") {
            cut.insert(pid, (index, begun.to_vec()));
            // As far as it is known; replaced when it goes on.
            recording.calls.push(call(&[begun, b") = ?"].concat()));
        } else {
            recording.calls.push(call(text));
            recording.moments.push(Moment::End(index));
        }
    }
    recording
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

/// `name(argument, argument) = result and what strace says about it`
fn call(text: &[u8]) -> Call {
    let open = find(text, b"(").unwrap_or_else(|| panic!("no call: {}", shown(text)));
    let name = String::from_utf8(text[..open].to_vec()).expect("calls have plain names");
    let (mut args, mut arg, mut depth, mut at) = (Vec::new(), Arg::default(), 0, open + 1);
    loop {
        let byte = *text.get(at).unwrap_or_else(|| panic!("no end: {}", shown(text)));
        at += 1;
        match byte {
            b'"' => {
                let (string, end) = unquote(text, at);
                assert!(!text[end..].starts_with(b"..."), "a string was cut: {}", shown(text));
                arg.strings.push(string);
                at = end;
            }
            b')' if depth == 0 => break,
            b',' if depth == 0 => {
                args.push(std::mem::take(&mut arg));
                at += usize::from(text.get(at) == Some(&b' '));
            }
            _ => {
                depth += i32::from(b"([{".contains(&byte)) - i32::from(b")]}".contains(&byte));
                arg.text.push(char::from(byte));
            }
        }
    }
    if arg != Arg::default() {
        args.push(arg);
    }
    // A cut call has its comma before the cut, and one more argument or none behind it.
    let result = text[at..]
        .trim_ascii()
        .strip_prefix(b"= ")
        .unwrap_or_else(|| panic!("no result: {}", shown(text)));
    let number: String = result
        .iter()
        .map(|byte| char::from(*byte))
        .take_while(|c| !c.is_whitespace())
        .collect();
    let result = match (number.strip_prefix("0x"), number.as_str()) {
        (_, "?") => None,
        (Some(hex), _) => Some(u64::from_str_radix(hex, 16).unwrap().cast_signed()),
        (None, _) => Some(number.parse().unwrap_or_else(|_| panic!("result {number}: {}", shown(text)))),
    };
    Call { name, args, result }
}

/// The string from `at` to its closing quote, and the place behind that.
fn unquote(text: &[u8], mut at: usize) -> (Vec<u8>, usize) {
    let mut string = Vec::new();
    loop {
        let plain = text[at..]
            .iter()
            .position(|byte| matches!(byte, b'"' | b'\\'))
            .expect("strings are closed");
        string.extend_from_slice(&text[at..at + plain]);
        at += plain;
        if text[at] == b'"' {
            return (string, at + 1);
        }
        // Segments are zeroed whole: millions of these in a row.
        while text[at..].starts_with(b"\\0\\0") {
            string.push(0);
            at += 2;
        }
        let (byte, length) = escaped(&text[at + 1..]);
        string.push(byte);
        at += 1 + length;
    }
}

/// What an escape stands for, and how many characters it has behind its backslash.
fn escaped(text: &[u8]) -> (u8, usize) {
    match text[0] {
        b'n' => (b'\n', 1),
        b't' => (b'\t', 1),
        b'r' => (b'\r', 1),
        b'v' => (0x0b, 1),
        b'f' => (0x0c, 1),
        byte @ (b'"' | b'\\') => (byte, 1),
        b'0'..=b'7' => {
            let digits = text.iter().take(3).take_while(|byte| matches!(byte, b'0'..=b'7'));
            let (value, length) = digits.fold((0u32, 0), |(value, length), digit| {
                (value * 8 + u32::from(digit - b'0'), length + 1)
            });
            (u8::try_from(value).expect("strace writes bytes"), length)
        }
        other => panic!("unknown escape {}", char::from(other)),
    }
}

fn shown(text: &[u8]) -> String {
    text[..text.len().min(300)].escape_ascii().to_string()
}

#[test]
fn a_recording_is_read_as_it_was_written() {
    let trace = br#"11 openat(AT_FDCWD, "/d/a\"b", O_RDWR|O_CREAT|O_CLOEXEC, 0666) = 3
12 pwrite64(3, "ab\0\0\0011\377\n"..., 8, 4096 <unfinished ...>
11 fdatasync(3)  = -1 EIO (Input/output error)
12 <... pwrite64 resumed>) = 8
11 writev(1, [{iov_base="x, ", iov_len=3}, {iov_base="y", iov_len=1}], 2) = 4
11 fsync(3 <unfinished ...>) = ?
12 +++ killed by SIGKILL +++
"#;
    let text = String::from_utf8_lossy(trace)
        .replace("...,", ",")
        .replace(" <unfinished ...>) = ?", ") = ?");
    let Recording { calls, moments } = read(text.as_bytes());
    use Moment::{Begin, End};
    assert_eq!(
        moments,
        [
            Begin(0),
            End(0),
            Begin(1),
            Begin(2),
            End(2),
            End(1),
            Begin(3),
            End(3),
            Begin(4),
            End(4)
        ]
    );
    assert_eq!(calls[0].args[1].strings, [b"/d/a\"b"]);
    assert_eq!(
        (calls[0].args[2].text.as_str(), calls[0].result),
        ("O_RDWR|O_CREAT|O_CLOEXEC", Some(3))
    );
    assert_eq!(calls[1].args[1].strings, [b"ab\0\0\x011\xff\n"]);
    assert_eq!((calls[1].args[3].text.as_str(), calls[1].result), ("4096", Some(8)));
    assert_eq!((calls[2].name.as_str(), calls[2].result), ("fdatasync", Some(-1)));
    assert_eq!(calls[3].args[1].strings.concat(), b"x, y");
    assert_eq!((calls[4].args.len(), calls[4].result), (1, None));
    assert!(std::panic::catch_unwind(|| read(br#"1 write(3, "abc"..., 9) = 9"#)).is_err());
}
