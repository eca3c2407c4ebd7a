// Reads objects, a JSON list, and writes for each what is wrong with it, or "".
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const PACKAGES = {
  "gateway.networking.k8s.io": "gateway-api",
  "monitoring.coreos.com": "prometheus-operator",
};
const [models] = process.argv.slice(2);
const said = [];
for (const found of JSON.parse(readFileSync(0, "utf8"))) {
  const [group, version] = found.apiVersion.split("/");
  const path = `${models}/@kubernetes-models/${PACKAGES[group]}/${group}/${version}/index.js`;
  const kinds = await import(pathToFileURL(path));
  try {
    new kinds[found.kind](found).validate();
    said.push("");
  } catch (error) {
    said.push(error.message);
  }
}
console.log(JSON.stringify(said));
