// Why a prompt is refused is said once, on the widget at fault. ComfyUI asks a node about its inputs all at once and lists the
// answer under each of them; the server has no way to name one.
import { api } from "../../../../scripts/api.js";

const KIND = "custom_validation_failed";

/** Has what the server refuses of our nodes come to the page with each sentence once. */
export function sayRefusalsOnce() {
  const { queuePrompt } = api;
  api.queuePrompt = async function (...given) {
    try {
      const answer = await queuePrompt.apply(this, given);
      eachOnce(answer?.node_errors);
      return answer;
    } catch (error) {
      eachOnce(error.response?.node_errors);
      throw error;
    }
  };
}

function eachOnce(nodeErrors) {
  for (const told of Object.values(nodeErrors ?? {})) {
    if (told.class_type?.startsWith("Foundry")) told.errors = once(told.errors);
  }
}

/** The errors with each sentence once: at the input that it names first, or else at the first input. */
function once(errors) {
  const kept = new Map();
  for (const error of errors) {
    const own = error.type === KIND ? sentenceOf(error) : error; // others are each about one input
    const known = kept.get(own);
    if (!known || placeOf(error, own) < placeOf(known, own)) kept.set(own, error);
  }
  return [...kept.values()];
}

const inputOf = (error) => error.extra_info?.input_name ?? "";

/** ComfyUI writes "input - sentence". */
function sentenceOf(error) {
  return error.details.slice(inputOf(error).length);
}

function placeOf(error, sentence) {
  const at = typeof sentence === "string" ? sentence.search(new RegExp(`(?<!\\w)${inputOf(error)}(?!\\w)`)) : 0;
  return at < 0 ? Infinity : at;
}
