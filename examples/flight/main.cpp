// A flight loop: the newest frame, the next question, an answer before the deadline, a line of telemetry.
//
//   flight MODEL FRAMES MISSION [RATE_HZ [DEADLINE_MS [COUNT]]]
//
// FRAMES is a folder of image files, MISSION a file with one question a line. COUNT 0 flies for ever.
#include <cinttypes>
#include <cstdio>
#include <cstdlib>

#include <trtvlm.hpp>

#include "camera.hpp"
#include "governor.hpp"
#include "mission.hpp"
#include "watchdog.hpp"

namespace {

struct Flight {
  const char *model, *frames, *mission;
  double rate_hz = 10;
  long deadline_ms = 100;
  std::uint64_t count = 0;
};

struct Totals {
  std::uint64_t answers = 0, misses = 0, errors = 0;
};

double ms(std::uint64_t ns) { return static_cast<double>(ns) / 1e6; }

// Control characters and quotes of an answer must not break the line.
void print_quoted(std::string_view text) {
  std::putchar('"');
  for (const char c : text) {
    if (c == '"' || c == '\\') std::putchar('\\');
    std::putchar(static_cast<unsigned char>(c) < 0x20 ? ' ' : c);
  }
  std::putchar('"');
}

void telemetry(const Shot &shot, std::string_view question, const trtvlm::Answer &answer, const Governor &governor,
               const Camera &camera, const Totals &totals) {
  const trtvlm_result &r = answer.result;
  std::printf("{\"frame\":%" PRIu64 ",\"question\":", shot.number);
  print_quoted(question);
  std::printf(",\"answer\":");
  print_quoted(answer.text);
  const std::string_view stop = answer.stop();
  std::printf(",\"stop\":\"%.*s\",\"late\":%u,\"level\":%zu,\"kept\":%u,\"tokens\":%u", static_cast<int>(stop.size()),
              stop.data(), r.late, governor.step(), r.visual_tokens_kept, r.tokens);
  std::printf(",\"ms\":{\"frame\":%.2f,\"preprocess\":%.2f,\"vision\":%.2f,\"prune\":%.2f,\"prefill\":%.2f,"
              "\"decode\":%.2f,\"first_token\":%.2f,\"total\":%.2f}",
              ms(r.frame_ns), ms(r.preprocess_ns), ms(r.vision_ns), ms(r.prune_ns), ms(r.prefill_ns), ms(r.decode_ns),
              ms(r.first_token_ns), ms(r.total_ns));
  std::printf(",\"dropped\":%" PRIu64 ",\"misses\":%" PRIu64 "}\n", camera.dropped(), totals.misses);
  std::fflush(stdout);
}

// Asks about frames until `count` were answered; false if the session has to be opened again.
bool fly(trtvlm::Session &session, const Flight &flight, Camera &camera, Mission &mission, Totals &totals) {
  Governor governor;
  const std::chrono::milliseconds deadline(flight.deadline_ms);
  Watchdog watchdog(session, deadline * 5);
  while (flight.count == 0 || totals.answers < flight.count) {
    Shot shot;
    if (!camera.take(shot, std::chrono::seconds(2))) {
      std::fprintf(stderr, "flight: no frame for two seconds\n");
      continue;
    }
    const std::string_view question = mission.next();
    const Governor::Level level = governor.level();
    const auto frame = trtvlm::Frame::encoded(shot.file->data(), shot.file->size()).at(shot.timestamp_ns);
    const auto asked = trtvlm::Question(question).deadline(deadline).keep(level.keep).max_tokens(level.max_tokens);
    watchdog.begin();
    const auto answer = session.ask(frame, asked);
    watchdog.end();
    ++totals.answers;
    if (!answer) {
      ++totals.errors;
      std::fprintf(stderr, "flight: frame %" PRIu64 ": %s\n", shot.number, answer.error().message.c_str());
      if (answer.error().status == TRTVLM_STATUS_INTERNAL) return false;
      continue;
    }
    const bool is_cut = answer->result.stop == TRTVLM_STOP_DEADLINE || answer->result.stop == TRTVLM_STOP_CANCELLED;
    if (is_cut || !answer->in_time()) ++totals.misses;
    telemetry(shot, question, *answer, governor, camera, totals);
    governor.saw(!is_cut && answer->in_time(), ms(answer->result.total_ns) / static_cast<double>(flight.deadline_ms));
  }
  std::fprintf(stderr, "flight: %" PRIu64 " answers, %" PRIu64 " misses, %" PRIu64 " errors, %" PRIu64
                       " dropped, watchdog %" PRIu64 "\n",
               totals.answers, totals.misses, totals.errors, camera.dropped(), watchdog.barked());
  return true;
}

} // namespace

int main(int argc, char **argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: %s MODEL FRAMES MISSION [RATE_HZ [DEADLINE_MS [COUNT]]]\n", argv[0]);
    return 2;
  }
  Flight flight{argv[1], argv[2], argv[3]};
  if (argc > 4) flight.rate_hz = std::strtod(argv[4], nullptr);
  if (argc > 5) flight.deadline_ms = std::strtol(argv[5], nullptr, 10);
  if (argc > 6) flight.count = std::strtoull(argv[6], nullptr, 10);
  if (!(flight.rate_hz > 0) || flight.deadline_ms <= 0) {
    std::fprintf(stderr, "flight: rate and deadline have to be above 0\n");
    return 2;
  }
  Camera camera;
  Mission mission;
  if (!camera.load(flight.frames) || !mission.load(flight.mission)) {
    std::fprintf(stderr, "flight: no frames in %s, or no questions in %s\n", flight.frames, flight.mission);
    return 1;
  }
  // Named, so that it is ready when the governor lets the model read less.
  const auto options = trtvlm::Options().pruner("attention").max_tokens(32);
  Totals totals;
  // A session that failed inside says so; another one takes its place, a few times.
  for (int tries = 0; tries < 3; ++tries) {
    auto session = trtvlm::Session::open(flight.model, options);
    if (!session) {
      std::fprintf(stderr, "flight: %s\n", session.error().message.c_str());
      return 1;
    }
    const trtvlm_memory memory = session->memory();
    std::fprintf(stderr, "flight: %s open, %.0f MiB\n", flight.model, static_cast<double>(memory.session_bytes) / (1 << 20));
    if (tries == 0) camera.start(flight.rate_hz);
    if (fly(*session, flight, camera, mission, totals)) return totals.errors == 0 ? 0 : 1;
  }
  return 1;
}
