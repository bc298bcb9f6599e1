// The page's few moves: take a photograph in, ask, show the answer. It asks nobody but the console that served it.
"use strict";

const at = (id) => document.getElementById(id);
const form = at("ask");
let photograph = null;
let shown = null;
let stream = null;

function say(text) {
  at("status").textContent = text;
}

function fail(text) {
  const line = document.createElement("p");
  line.className = "error";
  line.setAttribute("role", "alert");
  line.textContent = text;
  at("result").replaceChildren(line);
}

function choose(file) {
  if (!file) return;
  photograph = file;
  if (shown) URL.revokeObjectURL(shown);
  shown = URL.createObjectURL(file);
  at("preview").hidden = true;
  at("preview").src = shown;
  at("chosen").textContent = `${file.name || "photograph"}, ${Math.max(1, Math.round(file.size / 1024))} KiB`;
  say("");
}

function question() {
  const metadata = {};
  for (const select of form.querySelectorAll("[data-source]")) {
    const source = select.dataset.source;
    const value = select.value === "__other__" ? form.querySelector(`[data-free="${CSS.escape(source)}"]`).value : select.value;
    if (value.trim()) metadata[source] = value.trim();
  }
  const slider = at("localizer_threshold");
  return {
    bundle: form.dataset.bundle,
    metadata,
    top_k: at("top_k").valueAsNumber,
    max_detections: at("max_detections").valueAsNumber,
    localizer_threshold: slider.value === slider.dataset.default ? null : slider.valueAsNumber,
    mask: at("mask").checked,
    thumbnail: at("thumbnail").checked,
  };
}

async function ask(event) {
  event.preventDefault();
  if (at("go").disabled) return;
  if (!photograph) return fail("There is no photograph yet: choose one, drop one or take one.");
  const most = Number(form.dataset.maxBytes);
  if (most && photograph.size > most) {
    return fail(`The photograph has ${photograph.size} bytes; at most ${most} are taken. Choose a smaller one.`);
  }
  at("go").disabled = true;
  at("result").setAttribute("aria-busy", "true");
  say("Recognizing …");
  try {
    const body = new Blob([JSON.stringify(question()), "\n", photograph], { type: "application/octet-stream" });
    const response = await fetch("recognize", { method: "POST", body });
    // Every word in it was escaped by the console, and the page's policy runs no script but this file.
    at("result").innerHTML = await response.text();
    const answer = at("answer");
    say(answer ? `Answered: ${answer.textContent}.` : "No answer.");
    if (answer) {
      answer.focus();
    }
  } catch {
    fail("The console cannot be reached, or did not take all of the photograph. Is it still running?");
    say("No answer.");
  } finally {
    at("go").disabled = false;
    at("result").removeAttribute("aria-busy");
  }
}

async function openCamera() {
  // Browsers give the camera to pages on this machine or over HTTPS only; elsewhere a phone's own camera is asked.
  if (!navigator.mediaDevices) return at("shot").click();
  try {
    const wanted = { facingMode: "environment", width: { ideal: 1920 } };
    stream = await navigator.mediaDevices.getUserMedia({ video: wanted });
  } catch {
    return fail("No camera could be opened; allow it in the browser, or choose a file.");
  }
  at("snap").disabled = true;
  at("finder").srcObject = stream;
  at("booth").showModal();
}

function closeCamera() {
  if (stream) for (const track of stream.getTracks()) track.stop();
  stream = null;
  at("finder").srcObject = null;
  if (at("booth").open) at("booth").close();
}

function snap() {
  const finder = at("finder");
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [finder.videoWidth, finder.videoHeight];
  canvas.getContext("2d").drawImage(finder, 0, 0);
  closeCamera();
  canvas.toBlob((blob) => choose(new File([blob], "camera.jpg", { type: blob.type })), "image/jpeg", 0.92);
}

if (form) {
  form.addEventListener("submit", ask);
  for (const id of ["file", "shot"]) at(id).addEventListener("change", (event) => choose(event.target.files[0]));
  at("preview").addEventListener("load", () => { at("preview").hidden = false; });
  at("camera").addEventListener("click", openCamera);
  at("finder").addEventListener("loadeddata", () => { at("snap").disabled = false; });
  at("snap").addEventListener("click", snap);
  at("leave").addEventListener("click", closeCamera);
  at("booth").addEventListener("close", closeCamera);
  at("localizer_threshold").addEventListener("input", (event) => { at("threshold_said").textContent = Number(event.target.value).toFixed(2); });
  for (const select of form.querySelectorAll("[data-source]")) {
    const free = form.querySelector(`[data-free="${CSS.escape(select.dataset.source)}"]`);
    if (free) select.addEventListener("change", () => { free.closest("label").hidden = select.value !== "__other__"; });
  }
  const over = (on) => at("drop").classList.toggle("over", on);
  // A photograph that misses the frame must not replace the page.
  document.addEventListener("dragover", (event) => { event.preventDefault(); over(true); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) over(false); });
  document.addEventListener("drop", (event) => { event.preventDefault(); over(false); choose(event.dataTransfer.files[0]); });
  document.addEventListener("paste", (event) => choose(event.clipboardData.files[0]));
  at("bundle")?.addEventListener("change", (event) => { location.search = new URLSearchParams({ bundle: event.target.value }); });
}
