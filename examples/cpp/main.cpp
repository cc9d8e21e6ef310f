// Classifies image files by a file of `export --preprocess inside`, as `predict` does; docs/export.md says how to build it.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <onnxruntime/onnxruntime_cxx_api.h>

#define STB_IMAGE_IMPLEMENTATION
#include <stb/stb_image.h>

// The strings of a JSON list as Python writes it: characters beyond ASCII are \uXXXX, in UTF-16.
std::vector<std::string> strings_of(const std::string& json) {
  std::vector<std::string> found;
  size_t at = 0;
  auto unit = [&] { return at += 4, std::stoul(json.substr(at - 4, 4), nullptr, 16); };
  while ((at = json.find('"', at)) != std::string::npos) {
    std::string text;
    for (++at; json[at] != '"'; ) {
      if (json[at] != '\\') { text += json[at++]; continue; }
      char escaped = json[at + 1];
      at += 2;
      if (escaped != 'u') {
        const std::string from = "bfnrt", to = "\b\f\n\r\t";
        size_t which = from.find(escaped);
        text += which == std::string::npos ? escaped : to[which];
        continue;
      }
      unsigned long code = unit();
      if (code >= 0xD800 && code < 0xDC00) {  // the first of two
        at += 2;
        code = 0x10000 + ((code - 0xD800) << 10) + (unit() - 0xDC00);
      }
      if (code < 0x80) { text += char(code); continue; }
      int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
      text += char((0xFF << (7 - more) & 0xFF) | code >> 6 * more);
      while (more--) text += char(0x80 | (code >> 6 * more & 0x3F));
    }
    ++at;
    found.push_back(text);
  }
  return found;
}

int main(int count, char** arguments) try {
  if (count < 3) throw std::runtime_error("usage: classify classifier.onnx IMAGE...");
  Ort::Env env;
  Ort::Session session(env, arguments[1], Ort::SessionOptions{});
  Ort::AllocatorWithDefaultOptions allocator;
  auto metadata = session.GetModelMetadata();
  auto about = [&](const char* key) {
    auto value = metadata.LookupCustomMetadataMapAllocated(key, allocator);
    if (!value) throw std::runtime_error(std::string(arguments[1]) + " is not a file of export: it lacks " + key);
    return std::string(value.get());
  };
  if (about("resize") != "inside the file")
    throw std::runtime_error(std::string(arguments[1]) + " takes prepared images: export it with --preprocess inside");
  auto names = strings_of(about("class_names"));

  // the colour behind transparent pixels, if the classifier's dataset has one
  int background[3];
  auto decoding = about("decoding");
  auto where = decoding.find("\"background\": [");
  bool fill = where != std::string::npos && std::sscanf(decoding.c_str() + where, "\"background\": [%d, %d, %d]",
                                                        background, background + 1, background + 2) == 3;

  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  int unreadable = 0;
  for (int i = 2; i < count; ++i) {
    int width, height, channels;
    std::unique_ptr<stbi_uc, void (*)(void*)> rgba(stbi_load(arguments[i], &width, &height, &channels, 4), stbi_image_free);
    if (!rgba) {
      std::fprintf(stderr, "%s cannot be read: %s\n", arguments[i], stbi_failure_reason());
      ++unreadable;
      continue;
    }
    std::vector<uint8_t> pixels(size_t(width) * height * 3);
    for (size_t p = 0; p < pixels.size(); ++p) {
      const stbi_uc* pixel = rgba.get() + p / 3 * 4;
      int value = pixel[p % 3], opacity = fill ? pixel[3] : 255;
      if (opacity < 255) value = (value * opacity + background[p % 3] * (255 - opacity) + 127) / 255;
      pixels[p] = uint8_t(value);
    }
    std::vector<int64_t> shape{1, height, width, 3};
    auto images = Ort::Value::CreateTensor<uint8_t>(memory, pixels.data(), pixels.size(), shape.data(), shape.size());
    const char *inputs[] = {"images"}, *outputs[] = {"probabilities"};
    auto found = session.Run(Ort::RunOptions{}, inputs, &images, 1, outputs, 1);
    const float* probabilities = found[0].GetTensorData<float>();
    auto best = std::max_element(probabilities, probabilities + names.size()) - probabilities;
    std::printf("%s\t%s\t%.6f\n", arguments[i], names[best].c_str(), probabilities[best]);
  }
  return unreadable ? 1 : 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
