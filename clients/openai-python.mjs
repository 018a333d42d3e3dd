// OpenAI's Python client against the API, in an environment of its own that is made at the first run.
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { root } from "../contracts/scripts/foundry.mjs";

const here = import.meta.dirname;

/** Python with the packages of requirements.txt. */
function python() {
  const dir = join(root, "cache", "clients", "python");
  const bin = join(dir, process.platform === "win32" ? "Scripts" : "bin", "python");
  const done = (command, args) => {
    const { status, stdout, stderr, error } = spawnSync(command, args, { encoding: "utf8" });
    if (status !== 0) throw new Error(`${command} ${args.join(" ")} failed\n${error ?? ""}${stdout}${stderr}`);
  };
  if (!existsSync(bin)) {
    mkdirSync(join(root, "cache", "clients"), { recursive: true });
    done(process.platform === "win32" ? "python" : "python3", ["-m", "venv", dir]);
  }
  done(bin, ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", join(here, "requirements.txt")]);
  return bin;
}

export default async function run({ test, server }) {
  await test("all of openai_client.py", async () => {
    const env = { ...process.env, OPENLEDGER_API: server.api, OPENLEDGER_API_KEY: server.key };
    const { status, stdout, stderr } = spawnSync(python(), [join(here, "openai_client.py")], { env, encoding: "utf8" });
    if (status !== 0) throw new Error(`${stdout}${stderr}`);
  });
}
