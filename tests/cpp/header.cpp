// Checks of trtvlm.hpp: header MODEL IMAGE. Ends with 0 if all hold.
#include <cstdio>
#include <fstream>
#include <iterator>
#include <thread>
#include <vector>

#include <trtvlm.hpp>

#define CHECK(condition)                                                                                               \
  do {                                                                                                                 \
    if (!(condition)) {                                                                                                \
      std::fprintf(stderr, "line %d: %s\n", __LINE__, #condition);                                                     \
      return 1;                                                                                                        \
    }                                                                                                                  \
  } while (false)

using trtvlm::Frame;
using trtvlm::Options;
using trtvlm::Question;
using trtvlm::Session;

static int check_answers(Session &session, const Frame &frame) {
  auto answer = session.ask(frame, "describe the scene");
  CHECK(answer);
  CHECK(answer->text == "1 white car and 1 blue boat on grass");
  CHECK(answer->is_whole() && answer->in_time() && answer->stop() == "eos");
  CHECK(answer->result.timestamp_ns == 42);
  CHECK(answer.error().status == TRTVLM_STATUS_OK);
  const std::string whole(answer->text);

  std::string seen;
  answer = session.ask(frame, "describe the scene", [&](std::string_view piece) {
    seen += piece;
    return seen.size() < 5;
  });
  CHECK(answer && answer->stop() == "cancelled" && answer->text == seen && seen.size() < whole.size());

  answer = session.ask(frame, Question("describe the scene").max_tokens(2));
  CHECK(answer && answer->stop() == "length" && answer->result.tokens == 2);
  answer = session.ask(frame, Question("describe the scene").deadline(std::chrono::nanoseconds(0)));
  CHECK(answer && answer->stop() == "deadline" && answer->text.empty());
  answer = session.ask(frame, Question("describe the scene").keep(0.25F));
  CHECK(answer && answer->result.visual_tokens_kept * 2 < answer->result.visual_tokens);

  answer = session.ask(frame, "");
  CHECK(!answer && answer.error().status == TRTVLM_STATUS_QUESTION && !answer.error().message.empty());
  answer = session.ask(Frame::rgb(nullptr, 4, 4), "describe the scene");
  CHECK(!answer && answer.error().status == TRTVLM_STATUS_ARGUMENT);
  answer = session.ask(Frame::grey("pixels", 2, 3).on_cuda(), "describe the scene");
  CHECK(!answer && answer.error().status == TRTVLM_STATUS_UNSUPPORTED);
  return 0;
}

static int check_formats(Session &session) {
  const std::vector<unsigned char> bytes(64 * 48 * 3, 128);
  const Frame frames[] = {
      Frame::rgb(bytes.data(), 64, 48),         Frame::bgr(bytes.data(), 64, 40, 200),
      Frame::grey(bytes.data(), 63, 47),        Frame::nv12(bytes.data(), bytes.data() + 64 * 48, 64, 48),
      Frame::nv12(bytes.data(), bytes.data(), 63, 47, 64, 64, TRTVLM_COLOUR_FULL),
  };
  for (const Frame &frame : frames) CHECK(session.ask(frame, Question("how many trees are there").max_tokens(1)));
  return 0;
}

static int check_threads(Session &session, const char *model, const Frame &frame) {
  auto other = Session::open(model, Options().warm_up(0).answer_bytes(5));
  CHECK(other);
  int failed = 0;
  std::thread thread([&] {
    auto cut = other->ask(frame, "describe the scene");
    failed = !cut || cut->is_whole() || cut->text != "1 whi" || cut->result.needed < 30;
  });
  auto answer = session.ask(frame, "describe the scene");
  thread.join();
  CHECK(answer && failed == 0);
  session.cancel(); // nothing is being answered
  CHECK(session.ask(frame, "describe the scene")->stop() == "eos");
  CHECK(session.memory().resident_bytes > 0);
  Session moved = std::move(*other);
  CHECK(moved.ask(frame, "describe the scene"));
  CHECK(!other->ask(frame, "describe the scene"));
  return 0;
}

#ifdef TRTVLM_EXCEPTIONS
static int check_exceptions(Session &session, const Frame &frame) {
  bool caught = false;
  try {
    session.ask(frame, "").value();
  } catch (const trtvlm::Failure &failure) {
    caught = failure.status == TRTVLM_STATUS_QUESTION;
  }
  CHECK(caught);
  auto thrown = session.ask(frame, "describe the scene", [](std::string_view) -> bool { throw 7; });
  CHECK(!thrown && thrown.error().status == TRTVLM_STATUS_ARGUMENT);
  CHECK(session.ask(frame, "describe the scene"));
  return 0;
}
#endif

int main(int argc, char **argv) {
  CHECK(argc == 3 && trtvlm::abi_matches() && !trtvlm::version().empty());
  std::ifstream stream(argv[2], std::ios::binary);
  const std::vector<char> file((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  const Frame frame = Frame::encoded(file.data(), file.size()).at(42);
  auto none = Session::open("/nowhere");
  CHECK(!none && none.error().status == TRTVLM_STATUS_IO && none.error().message.find("/nowhere") == 0);
  auto session = Session::open(argv[1], Options().warm_up(1).pruner("attention"));
  CHECK(session);
  if (check_answers(*session, frame) != 0 || check_formats(*session) != 0) return 1;
  if (check_threads(*session, argv[1], frame) != 0) return 1;
#ifdef TRTVLM_EXCEPTIONS
  if (check_exceptions(*session, frame) != 0) return 1;
#endif
  return 0;
}
