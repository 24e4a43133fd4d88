// Uploads a file with Uppy and its tus plugin, as a page of somebody else's would: node uppy.cjs '{"endpoint": …, …}'.
// Prints what Uppy learned; with "breakAfter" the process ends, in the middle, after so many bytes.
const fs = require("node:fs");
const { basename } = require("node:path");
const { pathToFileURL } = require("node:url");
const tus = require("tus-js-client");

const { file, breakAfter, storage, meta, ...options } = JSON.parse(process.argv[2]);
const seen = { resumedAt: null };

async function main() {
  const [{ default: Uppy }, { default: Tus }] = await Promise.all(
    ["@uppy/core", "@uppy/tus"].map((name) => import(pathToFileURL(require.resolve(name)).href)),
  );
  const uppy = new Uppy({ meta }).use(Tus, {
    retryDelays: [100, 300, 1000, 3000],
    ...options,
    urlStorage: new tus.FileUrlStorage(storage), // a browser has its own
  });
  uppy.on("upload-progress", (_, { bytesUploaded }) => {
    if (bytesUploaded) seen.resumedAt ??= bytesUploaded;
    if (breakAfter && bytesUploaded >= breakAfter) process.exit(3);
  });
  const data = fs.readFileSync(file);
  data.size = data.length; // as a browser's files have it
  uppy.addFile({ name: basename(file), type: "application/octet-stream", data });
  const { failed, successful } = await uppy.upload();
  if (failed.length) throw failed[0].error;
  console.log(JSON.stringify({ ...seen, url: successful[0].uploadURL }));
}

main().catch((error) => {
  console.error(String(error));
  process.exit(1);
});
