//! Hostile files: pipes, devices and folders in place of files, archives that unpack to any size, headers with false
//! sizes.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use onnx_diffprune::array::{Array, ArrayData};
use onnx_diffprune::npz;

use super::tool::Ran;
use super::workspace::Workspace;
use crate::support::fixtures::fixture;

const TOOL: &str = env!("CARGO_BIN_EXE_onnx-diffprune");

/// Address space in KiB that these runs may use: far less than the files claim to contain.
const MEMORY: u32 = 700_000;

/// The least number of bytes that the files claim to contain.
const CLAIM: u64 = 1 << 30;

/// Runs the program with little memory. It must end soon, whatever it reads.
fn run(arguments: &[&str]) -> Ran {
    let mut child = Command::new("sh")
        .args(["-c", &format!("ulimit -v {MEMORY}; exec \"$0\" \"$@\""), TOOL])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if started.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("{arguments:?} did not end in time");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut ran = Ran { code: status.code().unwrap_or(-1), out: String::new(), err: String::new() };
    child.stdout.unwrap().read_to_string(&mut ran.out).unwrap();
    child.stderr.unwrap().read_to_string(&mut ran.err).unwrap();
    ran
}

fn refuses(workspace: &Workspace, arguments: &[&str], words: &[&str]) {
    let ran = run(arguments);
    assert_eq!(ran.code, 2, "{arguments:?}: {}{}", ran.out, ran.err);
    assert!(words.iter().all(|word| ran.err.contains(word)), "{arguments:?}: expected {words:?}, found {}", ran.err);
    assert!(workspace.written().is_empty(), "{arguments:?} left {:?}", workspace.written());
}

fn refuses_inputs(workspace: &Workspace, file: &str, words: &[&str]) {
    let (input, output) = (workspace.text("in.onnx"), workspace.out("out.onnx"));
    let prune = [&input, &output, "--ratio", "0.5", "--criterion", "magnitude", "--no-verify", "--inputs", file];
    refuses(workspace, &prune, words);
}

#[test]
fn pipes_devices_and_folders_are_refused_as_files() {
    let workspace = Workspace::new();
    let (input, output, report) = (workspace.text("in.onnx"), workspace.out("out.onnx"), workspace.text("p.json"));
    let ran = run(&[
        &input,
        &workspace.text("x.onnx"),
        "--ratio",
        "0.5",
        "--criterion",
        "magnitude",
        "--no-verify",
        "--plan",
        &report,
    ]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let fifo = workspace.text("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let link = workspace.text("link");
    std::os::unix::fs::symlink("fifo", &link).unwrap();
    let socket = workspace.text("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let folder = workspace.output.path().to_str().unwrap().to_owned();
    let prune = ["--ratio", "0.5", "--criterion", "magnitude", "--no-verify"];
    let kinds = [(&fifo, "a pipe"), (&link, "a pipe"), (&socket, "a socket"), (&folder, "a folder")];
    let devices = ["/dev/zero", "/dev/tty", "/dev/random"].map(str::to_owned);
    let devices = devices.iter().filter(|path| Path::new(path).exists()).map(|path| (path, "a device"));
    for (path, kind) in kinds.into_iter().chain(devices) {
        refuses(&workspace, &["apply", &input, path, &output, "--no-verify"], &[path, kind]);
        refuses(&workspace, &["apply", path, &report, &output, "--no-verify"], &[path, kind]);
        refuses(&workspace, &[&[path.as_str(), &output], &prune[..]].concat(), &[path, kind]);
        refuses(&workspace, &["inspect", path], &[path, kind]);
        refuses(&workspace, &["artifacts", path, &output], &[path, kind]);
        refuses(&workspace, &[&input, &output, "--config", path], &[path, kind]);
        refuses_inputs(&workspace, path, &[path, kind]);
    }
    // A pipe from the shell, as in `<(cat plan.json)`.
    refuses(&workspace, &["apply", &input, "/dev/stdin", &output, "--no-verify"], &["/dev/stdin"]);
    refuses(&workspace, &["apply", &input, "-", &output, "--no-verify"], &["-: can't be read"]);
}

#[test]
fn data_and_configurations_must_be_regular_files() {
    let workspace = Workspace::new();
    let (model, output) = (fixture("dit_tiny.onnx"), workspace.out("x.npy"));
    let model = model.to_str().unwrap();
    for name in ["fifo.npy", "fifo.npz", "fifo.safetensors", "fifo.json"] {
        assert!(Command::new("mkfifo").arg(workspace.path(name)).status().unwrap().success());
    }
    for name in ["fifo.npy", "fifo.npz", "fifo.safetensors"] {
        // ONNX Runtime needs more address space than the limit of these runs.
        let ran = super::tool::run(&["loss", model, "--data", &workspace.text(name), "--count", "2"]);
        assert!(ran.code == 2 && ran.err.contains("a pipe") && ran.err.contains(name), "{}", ran.err);
    }
    let config = workspace.text("fifo.json");
    let ran = super::tool::run(&["sample", model, "--save-npy", &output, "--scheduler-config", &config]);
    assert!(ran.code == 2 && ran.err.contains("a pipe") && ran.err.contains("fifo.json"), "{}", ran.err);
    // A pipe in a folder of images is not an image.
    std::fs::create_dir(workspace.path("images")).unwrap();
    assert!(Command::new("mkfifo").arg(workspace.path("images/a.png")).status().unwrap().success());
    let ran = super::tool::run(&["loss", model, "--data", &workspace.text("images"), "--count", "2"]);
    assert!(ran.code == 2 && ran.err.contains("found none"), "{}", ran.err);
}

/// Writes a `.npz` file with one compressed array of zeros that unpacks to slightly more than [`CLAIM`] bytes.
fn bomb(path: &Path, name: &str, dims: &[u64]) {
    let array = Array { dims: vec![0], data: ArrayData::F32(Vec::new()) };
    let header = String::from_utf8_lossy(&npz::to_npy(&array).unwrap()[10..]).into_owned();
    let shape: String = dims.iter().map(|size| format!("{size},")).collect();
    let header = header.trim_end().replace("(0,)", &format!("({shape})"));
    let mut member = b"\x93NUMPY\x01\x00".to_vec();
    member.extend((header.len() as u16).to_le_bytes());
    member.extend(header.as_bytes());
    let mut archive = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    let options = zip::write::SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Deflated)
        .compression_level(Some(1))
        .large_file(true);
    archive.start_file(format!("{name}.npy"), options).unwrap();
    archive.write_all(&member).unwrap();
    let zeros = vec![0; 1 << 20];
    for _ in 0..(4 * dims.iter().product::<u64>()).div_ceil(1 << 20) {
        archive.write_all(&zeros).unwrap();
    }
    archive.finish().unwrap();
}

#[test]
fn oversized_archives_are_refused_before_they_are_unpacked() {
    let workspace = Workspace::new();
    let file = workspace.text("bomb.npz");
    // The header is true, but its shape is not that of the input.
    bomb(Path::new(&file), "x", &[1, 4, 8192, 8192]);
    let packed = std::fs::metadata(&file).unwrap().len();
    assert!(packed < CLAIM / 100, "{packed}");
    refuses_inputs(&workspace, &file, &["expected shape [1, 4, 8, 8]", "8192"]);
    // An input of the network with more rows than fit into memory.
    bomb(Path::new(&file), "x", &[CLAIM / 1024, 4, 8, 8]);
    refuses_inputs(&workspace, &file, &["x", "memory"]);
    // The network has no input of this name.
    bomb(Path::new(&file), "latents", &[CLAIM / 4]);
    refuses_inputs(&workspace, &file, &["expected arrays named x", "latents"]);
    // The archive member is longer than its header states.
    let array = Array { dims: vec![1, 4, 8, 8], data: ArrayData::F32(vec![0.5; 256]) };
    let mut archive = zip::ZipWriter::new(std::fs::File::create(&file).unwrap());
    archive.start_file("x.npy", zip::write::SimpleFileOptions::default()).unwrap();
    archive.write_all(&npz::to_npy(&array).unwrap()).unwrap();
    let zeros = vec![0; 1 << 20];
    (0..CLAIM >> 20).for_each(|_| archive.write_all(&zeros).unwrap());
    archive.finish().unwrap();
    refuses_inputs(&workspace, &file, &["the 1024 bytes of its shape"]);
}

/// Returns the positions of a little-endian number in bytes.
fn position(bytes: &[u8], number: u32) -> Vec<usize> {
    (0..bytes.len() - 3).filter(|at| bytes[*at..at + 4] == number.to_le_bytes()).collect()
}

#[test]
fn false_sizes_in_directories_and_headers_are_refused() {
    let workspace = Workspace::new();
    let file = workspace.text("i.npz");
    let array = Array { dims: vec![1, 4, 8, 8], data: ArrayData::F32((0..256).map(|at| at as f32).collect()) };
    let honest = npz::to_bytes([("x", &array)]).unwrap();
    let size = npz::to_npy(&array).unwrap().len() as u32;
    // Sizes in the directory, one larger and one smaller than the real size.
    let claims = position(&honest, size);
    assert!(claims.len() >= 4, "packed and unpacked size, twice each: {claims:?}");
    for claim in [0, 7, size - 4, size + 4, u32::MAX - 1] {
        for at in &claims {
            let mut bytes = honest.clone();
            bytes[*at..at + 4].copy_from_slice(&claim.to_le_bytes());
            std::fs::write(&file, &bytes).unwrap();
            let (input, output) = (workspace.text("in.onnx"), workspace.out("out.onnx"));
            let ran = run(&[
                &input,
                &output,
                "--ratio",
                "0.5",
                "--criterion",
                "magnitude",
                "--no-verify",
                "--inputs",
                &file,
                "--dry-run",
            ]);
            assert!(matches!(ran.code, 0 | 2), "{claim} at {at}: {}", ran.err);
        }
    }
    // Headers whose shapes exceed the data, in files of every kind.
    let npy = npz::to_npy(&array).unwrap();
    let at = npy.windows(9).position(|window| window == b"(1,4,8,8,").unwrap();
    for shape in [&b"(9,4,8,8,"[..], b"(1,4,8,9,", b"(1,4,88,8", b"(9999999,", b"(-1,4,8,8"] {
        let mut bytes = npy.clone();
        bytes[at..at + shape.len()].copy_from_slice(shape);
        let lone = workspace.text("x.npy");
        std::fs::write(&lone, &bytes).unwrap();
        refuses_inputs(&workspace, &lone, &["x.npy"]);
    }
    // A header that claims a length of four gigabytes.
    let long = workspace.text("x.npy");
    std::fs::write(&long, [b"\x93NUMPY\x02\x00".as_slice(), &u32::MAX.to_le_bytes(), b"{'descr': '<f4', "].concat())
        .unwrap();
    refuses_inputs(&workspace, &long, &["expected a header of at most"]);
}

/// Writes a sparse file of the given length, which takes no space on the disk.
fn sparse(path: &str, start: &[u8], length: u64) {
    let mut file = std::fs::File::create(path).unwrap();
    file.write_all(start).unwrap();
    file.set_len(length).unwrap();
}

fn loss(data: &str) -> Ran {
    let model = fixture("dit_tiny.onnx");
    super::tool::run(&["loss", model.to_str().unwrap(), "--data", data, "--count", "2", "--timesteps", "2"])
}

#[test]
fn sparse_files_are_not_read_whole() {
    let workspace = Workspace::new();
    let rows = (1_u64 << 42) / 4096;
    // The header is true: four terabytes of holes.
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, 4, 16, 16), }}\n");
    let mut start = b"\x93NUMPY\x01\x00".to_vec();
    start.extend((header.len() as u16).to_le_bytes());
    start.extend(header.as_bytes());
    let npy = workspace.text("x.npy");
    sparse(&npy, &start, start.len() as u64 + (1 << 42));
    // A run that needs two of its samples succeeds.
    let ran = loss(&npy);
    assert!(ran.code == 0 && ran.out.contains(&format!("2 of {rows} samples")), "{}{}", ran.out, ran.err);
    let header =
        format!("{{\"x\":{{\"dtype\":\"F32\",\"shape\":[{rows},4,16,16],\"data_offsets\":[0,{}]}}}}", 1_u64 << 42);
    let tensors = workspace.text("x.safetensors");
    sparse(
        &tensors,
        &[&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat(),
        header.len() as u64 + 8 + (1 << 42),
    );
    let ran = loss(&tensors);
    assert!(ran.code == 0 && ran.out.contains(&format!("2 of {rows} samples")), "{}{}", ran.out, ran.err);
    // Headers with false sizes.
    for (name, text) in [
        ("short", "{\"x\":{\"dtype\":\"F32\",\"shape\":[9,4,16,16],\"data_offsets\":[0,36864]}}".to_owned()),
        ("back", "{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[8,4]}}".to_owned()),
        ("shape", "{\"x\":{\"dtype\":\"F32\",\"shape\":[18446744073709551615,2],\"data_offsets\":[0,4]}}".to_owned()),
        ("cut", "{\"x\":".to_owned()),
    ] {
        let path = workspace.text(&format!("{name}.safetensors"));
        std::fs::write(&path, [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &[0; 16]].concat()).unwrap();
        let ran = loss(&path);
        assert!(ran.code == 2 && ran.err.contains("safetensors"), "{name}: {}", ran.err);
    }
    let path = workspace.text("long.safetensors");
    std::fs::write(&path, u64::MAX.to_le_bytes()).unwrap();
    assert_eq!(loss(&path).code, 2);
    // Text files of any length: a plan, a configuration, a scheduler.
    for name in ["plan.json", "options.toml", "scheduler.json"] {
        sparse(&workspace.text(name), b"", 1 << 42);
    }
    let (input, output) = (workspace.text("in.onnx"), workspace.out("out.onnx"));
    refuses(
        &workspace,
        &["apply", &input, &workspace.text("plan.json"), &output, "--no-verify"],
        &["expected at most", "plan.json"],
    );
    refuses(
        &workspace,
        &[&input, &output, "--config", &workspace.text("options.toml")],
        &["expected at most", "options.toml"],
    );
    let (model, config) = (fixture("dit_tiny.onnx"), workspace.text("scheduler.json"));
    let ran =
        super::tool::run(&["sample", model.to_str().unwrap(), "--save-npy", &output, "--scheduler-config", &config]);
    assert!(ran.code == 2 && ran.err.contains("expected at most"), "{}", ran.err);
}

/// Builds a PNG file that claims this size and has almost no data.
fn png(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    image::GrayImage::new(1, 1).write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Png).unwrap();
    // Signature, length and name of the first chunk. Then follow the sizes, three more fields, and the checksum.
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let checksum = crc32(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc: u32, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

#[test]
fn oversized_images_are_refused_by_their_headers() {
    let workspace = Workspace::new();
    std::fs::create_dir(workspace.path("images")).unwrap();
    let model = fixture("ddpm_fashion16.onnx");
    let (model, folder) = (model.to_str().unwrap(), workspace.text("images"));
    for (width, height, word) in [
        (60_000, 60_000, "at most 134217728 pixels, found 60000 x 60000"),
        (1 << 30, 1 << 30, "not a readable image"),
        (u32::MAX, 1, "image"),
        (0, 0, "not a readable image"),
        (3000, 3000, "not a readable image"),
    ] {
        for name in ["a.png", "b.png"] {
            std::fs::write(workspace.path("images").join(name), png(width, height)).unwrap();
        }
        let ran = super::tool::run(&["loss", model, "--data", &folder, "--count", "2", "--timesteps", "2"]);
        assert!(ran.code == 2 && ran.err.contains(word) && ran.err.contains(".png"), "{width} x {height}: {}", ran.err);
    }
}
