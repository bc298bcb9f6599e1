// What a user is shown of an answer.
import { Caution } from "./gen/l2r2/v1/recognition_pb.js";

const CAUTIONS = {
  [Caution.NOTHING_FOUND]: "nothing was found in it; the answer is that of the whole photograph",
  [Caution.FG_UNSURE_FULL_SURE]: "the background may have decided",
  [Caution.FLIPPED_BY_PRIOR]: "without habitat, substrate and month the answer would be another",
  [Caution.HAZARD]: "a hazardous kind is possible",
};

/** Lines about an answer: the class, what else it may be, and what to be careful about. */
export function told(name, response) {
  const { candidates, withheld, degraded, bundle, predictionSet, cautions, unrecognized } = response;
  // A withheld answer may not be shown as a class, however probable it is.
  const answer = withheld ? "withheld" : percent(candidates[0]);
  const lines = [`${name}: ${answer} (${bundle.name} ${bundle.version})`];
  if (predictionSet && !withheld) {
    const { members, size, coverage } = predictionSet;
    const rest = size > members.length ? ` and ${size - members.length} more` : "";
    lines.push(`one of: ${members.map(percent).join(", ")}${rest} (right for ${Math.round(100 * coverage)} of 100)`);
  }
  // A newer server may know cautions that this program does not.
  lines.push(...cautions.map((caution) => `caution: ${CAUTIONS[caution] ?? `number ${caution}`}`));
  if (degraded) {
    lines.push("caution: there was no time to look at the whole photograph");
  }
  lines.push(...unrecognized.map(({ source, value }) => `not known here: ${source} ${value}`));
  return lines.join("\n  ");
}

function percent({ name, probability }) {
  return `${name} ${(100 * probability).toFixed(1)} %`;
}
