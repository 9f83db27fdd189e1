//! The build of an engine, in a separate process.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::find::{SCRIPT, Tool};
use super::{
    Capability, DeployTarget, Engine, EngineBuilder, EngineRequest, TIMING_CACHE, capabilities_option, file_name,
};
use crate::deploy::ranges::Steps;
use crate::error::Error;
use crate::files::Outputs;

/// The interval at which the caller is asked whether to continue.
const PERIOD: Duration = Duration::from_millis(200);

/// The file name of the engine while it is built.
const UNNAMED: &str = "building.engine";

/// Maximum number of lines of a failed build that are shown.
const SHOWN: usize = 6;

impl EngineBuilder {
    /// Builds the engine of a network into its folder.
    ///
    /// # Errors
    /// The build fails, and the error contains the builder's messages; or the caller stops it.
    pub fn build(&self, request: &EngineRequest<'_>, steps: &mut Steps<'_>) -> Result<Engine, Error> {
        let started = Instant::now();
        let mut command = match &self.tool {
            Tool::Program(program) => {
                let mut command = Command::new(program);
                command.args(self.arguments(request));
                command
            }
            Tool::Python(python) => {
                let mut command = Command::new(python);
                command.args(["-c", SCRIPT, &self.request(request).to_string()]);
                command
            }
        };
        command.current_dir(request.folder);
        let (lines, is_success) = followed(command, steps)?;
        let fields: Vec<Value> = lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let built = request.folder.join(UNNAMED);
        let is_there = built.is_file()
            && match self.tool {
                Tool::Program(_) => is_success,
                Tool::Python(_) => fields.iter().any(|fields| fields.get("built").is_some()),
            };
        if !is_there {
            return Err(self.failed(&lines, &fields));
        }
        let of_gpu = fields.iter().find_map(|fields| fields.get("capability")?.as_str().map(str::to_owned));
        let capability = self.capability(request.capabilities, of_gpu);
        let file = request.folder.join(file_name(self.target, request.digest, &self.version, &capability));
        let fail = |error: std::io::Error| Error::io(&file, format!("can't be written: {error}"));
        let mut outputs = Outputs::default();
        outputs.add(&built, &file);
        outputs.publish(&[])?;
        let bytes = file.metadata().map_err(fail)?.len();
        Ok(Engine { bytes, builder: self.label(), seconds: started.elapsed().as_secs_f64(), file })
    }

    /// Returns the capabilities of an engine for its name: those given, the GPU's, or the default of TensorRT for RTX.
    fn capability(&self, named: &[Capability], of_gpu: Option<String>) -> String {
        if !named.is_empty() {
            return named.iter().map(|one| format!("sm{}", one.digits())).collect::<Vec<_>>().join("-");
        }
        match self.target {
            DeployTarget::TensorrtRtx => "portable".to_owned(),
            _ => of_gpu.or_else(of_driver).map_or("gpu".to_owned(), |digits| format!("sm{digits}")),
        }
    }

    fn arguments(&self, request: &EngineRequest<'_>) -> Vec<String> {
        let mut arguments = vec![format!("--onnx={}", request.model), format!("--saveEngine={UNNAMED}")];
        match self.target {
            DeployTarget::TensorrtRtx if !request.capabilities.is_empty() => {
                arguments.push(capabilities_option(request.capabilities));
            }
            DeployTarget::TensorrtRtx => {}
            _ => {
                arguments.push(format!("--timingCacheFile={TIMING_CACHE}"));
                // TensorRT 10 chooses types by itself without this option; 11 always uses those of the file.
                if self.major().is_some_and(|major| major < 11) {
                    arguments.push("--stronglyTyped".to_owned());
                }
            }
        }
        arguments.push("--skipInference".to_owned());
        arguments.extend(request.profile.trtexec());
        arguments
    }

    fn major(&self) -> Option<u64> {
        self.version.split('.').next()?.parse().ok()
    }

    fn request(&self, request: &EngineRequest<'_>) -> Value {
        let shapes: Vec<Value> =
            request.profile.inputs.iter().map(|input| json!([input.name, input.min, input.opt, input.max])).collect();
        let capabilities: Vec<&str> = request.capabilities.iter().map(Capability::digits).collect();
        let cache = (self.target != DeployTarget::TensorrtRtx).then_some(TIMING_CACHE);
        json!({
            "target": self.target.name(),
            "onnx": request.model,
            "engine": UNNAMED,
            "shapes": shapes,
            "capabilities": capabilities,
            "timing_cache": cache,
        })
    }

    fn failed(&self, lines: &[String], fields: &[Value]) -> Error {
        let said = fields.iter().find_map(|fields| fields.get("error")?.as_str().map(str::to_owned));
        let more = fields.iter().filter_map(|fields| fields.get("messages")?.as_array()).flatten();
        let mut shown: Vec<String> = more.filter_map(|line| line.as_str().map(str::to_owned)).collect();
        if said.is_none() {
            let is_error = |line: &&String| line.contains("[E]") || line.contains("rror");
            shown = lines.iter().filter(is_error).cloned().collect();
        }
        if shown.is_empty() && said.is_none() {
            shown = lines.iter().rev().take(SHOWN).rev().cloned().collect();
        }
        shown.truncate(SHOWN);
        let text =
            [said.unwrap_or_else(|| "no engine was built".to_owned())].into_iter().chain(shown).collect::<Vec<_>>();
        Error::unmet(format!("{}: {}", self.describe(), text.join("\n")))
            .hint("leave --engine out: the bundle contains the commands to build the engine elsewhere")
    }
}

/// Runs a command, reports its steps, and returns its lines. The command is killed if the caller stops.
fn followed(mut command: Command, steps: &mut Steps<'_>) -> Result<(Vec<String>, bool), Error> {
    let shown = command.get_program().to_string_lossy().into_owned();
    let fail = |error: std::io::Error| Error::unmet(format!("{shown} can't run: {error}"));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(fail)?;
    let (send, receive) = channel();
    let streams: [Option<Box<dyn Read + Send>>; 2] = [
        child.stdout.take().map(|stream| Box::new(stream) as Box<dyn Read + Send>),
        child.stderr.take().map(|stream| Box::new(stream) as Box<dyn Read + Send>),
    ];
    let readers: Vec<_> = streams
        .into_iter()
        .flatten()
        .map(|stream| {
            let send = send.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                    let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                    if send.send(line).is_err() {
                        return;
                    }
                }
            })
        })
        .collect();
    drop(send);
    let (mut lines, mut last) = (Vec::new(), (0, 1));
    let stop = |child: &mut Child, error: Error| {
        let _ = child.kill();
        let _ = child.wait();
        error
    };
    loop {
        match receive.recv_timeout(PERIOD) {
            Ok(line) => {
                let fields: Value = serde_json::from_str(&line).unwrap_or_default();
                let number = |name: &str| usize::try_from(fields.get(name)?.as_u64()?).ok();
                if let (Some(done), Some(total)) = (number("done"), number("total")) {
                    last = (done, total.max(1));
                } else {
                    lines.push(line);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if let Err(error) = steps(last.0, last.1) {
            return Err(stop(&mut child, error));
        }
    }
    let status = child.wait().map_err(fail)?;
    readers.into_iter().for_each(|reader| _ = reader.join());
    Ok((lines, status.success()))
}

/// Returns the compute capability of the first GPU, as NVIDIA's tool reports it.
fn of_driver() -> Option<String> {
    let output = Command::new("nvidia-smi").args(["--query-gpu=compute_cap", "--format=csv,noheader"]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let capability: Capability = text.lines().next()?.parse().ok()?;
    Some(capability.digits().to_owned())
}
