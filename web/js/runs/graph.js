// The graph that draws a comparison: ComfyUI's own sampler over a run's checkpoints, as a prompt for its queue.

/** Ids far from those of any workflow: results must not land on a node of the one that is open. */
const FIRST_ID = 9_000_001;

/**
 * The prompt.
 *
 * @param {string} run its name
 * @param {Array<{step: number|null, strength: number}>} columns a step of null is the base alone
 * @param {string[]} prompts
 * @param {{seed: number, seeds: number, negative: string, sampler: string, scheduler: string, steps: number}} how seeds are
 *     counted on from the first; steps of 0 are those of the run's own previews
 * @returns {{prompt: object, cells: Map<string, [number, number, number]>}} cells: row, column and which seed, by the id of
 *     the node that shows it
 */
export function comparison(run, columns, prompts, { seed, seeds, negative, sampler, scheduler, steps: drawingSteps }) {
  const prompt = {};
  const cells = new Map();
  let next = FIRST_ID;
  const add = (kind, title, inputs) => {
    const id = String(next++);
    prompt[id] = { class_type: kind, inputs, _meta: { title } };
    return id;
  };

  const steps = [...new Set(columns.map(({ step }) => step).filter((step) => step !== null))];
  const loaded = new Map((steps.length ? steps : [0]).map((step) => [step, add("FoundryLoadRun", `${run}, ${step}`, { name: run, step })]));
  const [first] = loaded.values();
  const base = add("FoundryLoadBase", "Base", { base: [first, 1] });
  const latent = add("EmptyLatentImage", "Size", { width: [first, 3], height: [first, 4], batch_size: 1 });
  const encoded = (text) => add("FluxGuidance", text, { conditioning: [add("CLIPTextEncode", text, { clip: [base, 1], text }), 0], guidance: [first, 7] });
  const without = encoded(negative);
  const models = columns.map(({ step, strength }) =>
    step === null ? base : add("LoraModelLoader", `${step} × ${strength}`, { model: [base, 0], lora: [loaded.get(step), 2], strength_model: strength, bypass: false }),
  );
  prompts.forEach((text, row) => {
    const positive = encoded(text);
    models.forEach((model, column) => {
      const name = model === base ? "base" : `${columns[column].step} × ${columns[column].strength}`;
      for (let which = 0; which < seeds; which += 1) {
        const drawn = add("KSampler", "Draw", {
          model: [model, 0], positive: [positive, 0], negative: [without, 0], latent_image: [latent, 0], seed: seed + which,
          steps: drawingSteps || [first, 5], cfg: [first, 6], sampler_name: sampler, scheduler, denoise: 1,
        });
        const decoded = add("VAEDecode", "Decode", { samples: [drawn, 0], vae: [base, 2] });
        cells.set(add("PreviewImage", `${text}: ${name}`, { images: [decoded, 0] }), [row, column, which]);
      }
    });
  });
  return { prompt, cells };
}
