// Uploads a file with tus-js-client, as its manual has it: node upload.cjs '{"endpoint": …, "file": …, …}'.
// Prints what the client learned; with "breakAfter" the process ends, in the middle, after so many bytes.
const fs = require("node:fs");
const { PassThrough } = require("node:stream");
const tus = require("tus-js-client");

const { file, breakAfter, storage, ...options } = JSON.parse(process.argv[2]);
const seen = { chunks: [], resumedAt: null };

// of a file it always knows the length
const source = options.uploadLengthDeferred
  ? fs.createReadStream(file).pipe(new PassThrough())
  : fs.createReadStream(file);
const upload = new tus.Upload(source, {
  retryDelays: [100, 300, 1000, 3000],
  ...options,
  urlStorage: new tus.FileUrlStorage(storage),
  onProgress(sent) {
    seen.resumedAt ??= sent;
    if (breakAfter && sent >= breakAfter) process.exit(3);
  },
  onChunkComplete: (_, accepted) => seen.chunks.push(accepted),
  onError(error) {
    console.error(String(error));
    process.exit(1);
  },
  onSuccess: () => console.log(JSON.stringify({ ...seen, url: upload.url })),
});

upload.findPreviousUploads().then((previous) => {
  if (previous.length) upload.resumeFromPreviousUpload(previous[0]);
  upload.start();
});
