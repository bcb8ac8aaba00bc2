/*
 * Import what `cytopipe infer` found into the image that is open in QuPath (0.4 or later).
 *
 * Automate > Script editor, open this file, set `folder` or leave it empty to choose one, Run. For a whole project:
 * Run > Run for project; then `folder` must be the --out of infer, with a folder for each slide.
 *
 * Read are objects.geojson, objects.geojson.gz, and the parts objects-0001.geojson and on, in frame bounds: what infer
 * writes unless told otherwise, and the frame in which QuPath shows a slide. Cells come as detections with their class,
 * its colour, and measurements (Score, Suspicion, areas, shape). Detections that the image has already stay, unless
 * `replaceDetections` is true. Importing a second time gives the same ids, not new objects under other names.
 */
import qupath.lib.io.PathIO
import static qupath.lib.scripting.QP.*

def folder = ""                  // results/SLIDE, or results with a folder a slide; "": ask
def replaceDetections = true
def leastScore = 0.0             // leave out what is less certain

if (!folder) {
    def chosen = qupath.fx.dialogs.FileChoosers.promptForDirectory("Results of cytopipe infer", null)
    if (chosen == null) return
    folder = chosen.getAbsolutePath()
}

def imageData = getCurrentImageData()
def imageName = imageData.getServer().getMetadata().getName()
def stem = imageName.replaceFirst(/\.[A-Za-z][A-Za-z0-9]*$/, "").replaceFirst(/\.ome$/, "")
def isResult = { File file -> file.getName() ==~ /objects(-\d{4})?\.geojson(\.gz)?/ }
def inFolder = { File place -> (place.listFiles() ?: [] as File[]).findAll(isResult).sort { it.getName() } }

def files = inFolder(new File(folder))
if (files.isEmpty()) files = inFolder(new File(folder, stem))
if (files.isEmpty()) {
    println "No objects.geojson for ${imageName} in ${folder} or ${folder}/${stem}"
    return
}

def found = []
files.each { file ->
    def stream = new FileInputStream(file)
    def text = file.getName().endsWith(".gz") ? new java.util.zip.GZIPInputStream(stream) : stream
    text.withCloseable { found.addAll(PathIO.readObjectsFromGeoJSON(it)) }
}
found = found.findAll {
    def score = it.getMeasurements().get("Score")
    score == null || score.doubleValue() >= leastScore
}

if (replaceDetections) clearDetections()
addObjects(found)
resolveHierarchy()
fireHierarchyUpdate()
println "${found.size()} cells of ${files.size()} file(s) added to ${imageName}"
